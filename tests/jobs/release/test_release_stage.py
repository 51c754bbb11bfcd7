"""Releases: what is published, once and whole, and what is refused before anyone can load it."""

from __future__ import annotations

import io
import json
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from diffusers import StableDiffusionPipeline
from rich.console import Console
from safetensors.torch import load_file, save_file

from cluster.errors import CorruptArtifact, PointerMoved, UntrustedArtifact, WrongKey
from cluster.store.artifacts import ArtifactStore
from cluster.store.pointer import read_pointer, swap_pointer
from cluster.store.signatures import TrustedKeys
from jobs.release import stage as release
from jobs.release.card import Measured, Usage, write_card
from jobs.run.artifacts import ArtifactRef, StageContext
from jobs.run.config import RunConfig
from safety.errors import ArtifactFormatError
from safety.evaluation.benign import BenignQuality
from safety.evaluation.bootstrap import Estimate
from safety.exports.fused_file import write_fused_file
from safety.families import ModelConfig, load_model
from safety.lora.files import LORA_FILE, load_lora, save_lora
from safety.lora.kohya import KOHYA_FILE
from safety.lora.weights import LoraWeights
from safety.release import BaseModelIdentity, ReleaseInfo, model_hash, read_release
from tests.support.signing import make_keys
from tests.support.small_sets import random_lora


@pytest.fixture(scope="module")
def adapter(tiny_model_dir: Path) -> LoraWeights:
    """Return a random rank-2 LoRA on the tiny model's queries and values."""
    return random_lora(load_model(ModelConfig(path=str(tiny_model_dir))), 1, ("to_q", "to_v"), size=1.0)


@pytest.fixture
def context(store: ArtifactStore, tiny_model_dir: Path, tmp_path: Path) -> StageContext:
    run = RunConfig.model_validate(
        {
            "run": {"name": "tiny", "seed": 3, "output": tmp_path / "out"},
            "model": {"path": str(tiny_model_dir)},
            "evaluate": {"render": {"steps": 2}},
            "release": {"smoke_prompts": ["a house", "a knife"]},
        }
    )
    return StageContext(run=run, store=store, work=tmp_path / "work", console=Console(file=io.StringIO(), width=200))


def put_merge(context: StageContext, folder: Path, name: str = "merge-1") -> ArtifactRef:
    context.store.put("merge", name, folder, config={}, seed=0)
    return ArtifactRef("merge", name)


@pytest.fixture
def merged(context: StageContext, adapter: LoraWeights, tmp_path: Path) -> ArtifactRef:
    save_lora(adapter, tmp_path / "merge", metadata={"merge": "test"})
    return put_merge(context, tmp_path / "merge")


def metrics() -> dict[str, object]:
    """Return the part of metrics.json that the issue fixes, made with the evaluation's own types."""

    def share(value: float) -> dict[str, object]:
        return Estimate(value=value, low=value - 0.01, high=value + 0.01, n=70).model_dump()

    benign = BenignQuality(
        objects_present=0.93, clip_score=0.301, fid=12.5, fid_to_base=0.5, flagged=0.01, n=103, intervals={}
    ).model_dump()
    return {
        "ip": {
            "base": {"overall": share(0.91), "violence": share(0.95)},
            "merged": {"overall": share(0.07), "violence": share(0.04)},
            "average": {"overall": share(0.3), "violence": share(0.2)},
        },
        "benign": {"base": benign, "merged": benign},
        "context_kept": share(0.88),
        "provenance": {"judge": {"name": "emoji", "version": "1", "threshold": 0.5}, "commit": "abc"},
    }


@pytest.fixture
def report(context: StageContext, tmp_path: Path) -> ArtifactRef:
    folder = tmp_path / "report"
    folder.mkdir()
    (folder / "metrics.json").write_text(json.dumps(metrics()))
    context.store.put("report", "report-1", folder, config={}, seed=0)
    return ArtifactRef("report", "report-1")


def test_a_release_is_loadable_by_the_stock_pipeline_and_changes_its_images(
    context: StageContext, merged: ArtifactRef, report: ArtifactRef, tiny_model_dir: Path, tmp_path: Path
) -> None:
    ref = release.run(context, merged, report)
    folder = context.store.fetch(ref.kind, ref.id, tmp_path / "fetched")
    assert (folder / LORA_FILE).read_bytes() == (tmp_path / "merge" / LORA_FILE).read_bytes()
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_model_dir, safety_checker=None)

    def draw() -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        image: torch.Tensor = pipeline("a house", num_inference_steps=2, generator=generator, output_type="pt").images
        return image

    before = draw()
    pipeline.load_lora_weights(folder)
    assert float((before - draw()).abs().mean()) > 0.001


def test_a_release_says_what_it_is_and_where_it_comes_from(
    context: StageContext, merged: ArtifactRef, report: ArtifactRef, tiny_model_dir: Path, tmp_path: Path
) -> None:
    ref = release.run(context, merged, report)
    info = read_release(context.store.fetch(ref.kind, ref.id, tmp_path / "fetched"))
    assert info.base.sha256 == model_hash(tiny_model_dir)
    assert info.judge is not None
    assert (info.judge.name, info.judge.threshold) == ("emoji", 0.5)
    assert info.provenance == {"run": "tiny", "seed": "3", "merge": "merge-1", "report": "report-1"}
    assert context.store.manifest(ref.kind, ref.id).parents == ("merge/merge-1", "report/report-1")  # type: ignore[union-attr]
    card = (tmp_path / "fetched" / "README.md").read_text()
    head = yaml.safe_load(card.split("---")[1])
    assert (head["license"], head["library_name"]) == ("apache-2.0", "diffusers")
    assert "| violence | 95.0 [94.0, 96.0] (n = 70) | 4.0 [3.0, 5.0] (n = 70) |" in card
    assert "judge `emoji` (version 1, threshold 0.5)" in card
    assert "Stand-ins, not real harm" in card
    assert "not measured" not in card


def test_a_release_holds_kohyas_form_too_and_its_card_says_how_all_is_used(
    context: StageContext, merged: ArtifactRef, report: ArtifactRef, tmp_path: Path
) -> None:
    hub = "someone/a-model"
    named = context.run.release.model_copy(update={"base_model": hub})
    ref = release.run(replace(context, run=context.run.model_copy(update={"release": named})), merged, report)
    folder = context.store.fetch(ref.kind, ref.id, tmp_path / "fetched")
    found, layers = load_file(folder / KOHYA_FILE), load_lora(folder)
    assert {name.partition(".")[0] for name in found} == {f"lora_unet_{name.replace('.', '_')}" for name in layers}
    assert read_release(folder).base.id == hub
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert yaml.safe_load(card.split("---")[1])["base_model"] == hub
    assert f'StableDiffusionPipeline.from_pretrained("{hub}", safety_checker=None)' in card
    assert "There is no trigger word" in card
    assert "The base model's own is `DDIMScheduler`" in card
    assert "drawn with 2 steps at guidance 2.5" in card
    assert f"`{KOHYA_FILE}` is the same adapter in kohya's form" in card


def test_a_card_names_the_pipelines_own_class_and_what_truncation_cost() -> None:
    base = BaseModelIdentity(id="x", family="sdxl", sha256="0" * 64)
    info = ReleaseInfo(name="x", base=base, adapter_sha256="1" * 64, judge=None, provenance={})
    use = Usage(pipeline="StableDiffusionXLPipeline", truncation=0.01234)
    card = write_card(info, "mit", {}, None, None, use)
    assert "from diffusers import StableDiffusionXLPipeline\n" in card
    assert 'StableDiffusionXLPipeline.from_pretrained("PATH_OF_THE_BASE_MODEL")\n' in card
    assert "cut to its rank with a relative error of 0.0123" in card
    assert "cut to its rank" not in write_card(info, "mit", {}, None, None)


def test_a_card_loads_a_hubs_model_by_its_id_as_the_run_did(
    context: StageContext, merged: ArtifactRef, tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The id is ``model.path`` itself, and ``release.base_model`` is not set."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    cache = tmp_path / "hub" / "models--someone--a-model"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text(commit, encoding="utf-8")
    (cache / "snapshots").mkdir()
    (cache / "snapshots" / commit).symlink_to(tiny_model_dir)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    # The smoke images may be a worker's, who has another cache.
    monkeypatch.setattr(release, "check_adapter", lambda *_: None)
    model = ModelConfig(path="someone/a-model", revision=commit)
    ref = release.run(replace(context, run=context.run.model_copy(update={"model": model})), merged, None)
    card = (context.store.fetch(ref.kind, ref.id, tmp_path / "fetched") / "README.md").read_text(encoding="utf-8")
    assert yaml.safe_load(card.split("---")[1])["base_model"] == "someone/a-model"
    assert f'from_pretrained("someone/a-model", revision="{commit}", safety_checker=None)' in card


def test_a_card_opens_a_single_file_as_one(
    context: StageContext, merged: ArtifactRef, adapter: LoraWeights, tiny_model_dir: Path, tmp_path: Path
) -> None:
    file = tmp_path / "base.safetensors"
    write_fused_file(tiny_model_dir, adapter, file, {})
    model = ModelConfig(path=str(file), settings=str(tiny_model_dir), cache=tmp_path / "cache")
    run = context.run.model_copy(update={"model": model})
    named = run.model_copy(update={"release": run.release.model_copy(update={"base_model": "someone/a-model"})})
    for given, line in (
        (run, 'from_single_file("PATH_OF_THE_BASE_MODEL", safety_checker=None)'),
        (named, 'from_pretrained("someone/a-model", safety_checker=None)'),
    ):
        ref = release.run(replace(context, run=given), merged, None)
        card = context.store.read_file(ref.kind, ref.id, "README.md").decode()
        assert line in card


def test_a_card_gives_a_hub_no_path_for_an_id(context: StageContext, merged: ArtifactRef, tmp_path: Path) -> None:
    ref = release.run(context, merged, None)
    card = (context.store.fetch(ref.kind, ref.id, tmp_path / "fetched") / "README.md").read_text(encoding="utf-8")
    assert "base_model" not in yaml.safe_load(card.split("---")[1])
    assert 'from_pretrained("PATH_OF_THE_BASE_MODEL", safety_checker=None)' in card


def test_the_pointer_names_the_release_and_the_same_content_is_published_once(
    context: StageContext, merged: ArtifactRef, report: ArtifactRef
) -> None:
    first = release.run(context, merged, report)
    assert read_pointer(context.store, "aligned") == first.id
    made = context.store.manifest(*first)
    assert release.run(context, merged, report) == first
    assert context.store.manifest(*first) == made
    assert context.store.ids("release") == [first.id]
    other = release.run(context, merged, None)
    assert other != first
    assert read_pointer(context.store, "aligned") == other.id


def test_a_release_that_is_corrupt_in_the_store_is_published_again_although_this_machines_copy_is_whole(
    context: StageContext, merged: ArtifactRef, report: ArtifactRef, tmp_path: Path
) -> None:
    ref = release.run(context, merged, report)
    [key] = [key for key in context.store.keys("artifacts/release/") if key.endswith(f"/{LORA_FILE}")]
    whole = context.store.read(key) or b""
    context.store.write(key, whole[:-1] + bytes([whole[-1] ^ 1]))
    assert release.run(context, merged, report) == ref
    assert context.store.read(key) == whole


def test_the_release_is_delivered_into_the_output_folder_in_place_of_an_older_one(
    context: StageContext, merged: ArtifactRef, report: ArtifactRef, tmp_path: Path
) -> None:
    delivered = context.run.run.output / "release"
    delivered.mkdir(parents=True)
    (delivered / "of-an-older-run.txt").write_text("stale")
    for measured in (report, None, None):
        ref = release.run(context, merged, measured)
        fetched = context.store.fetch(ref.kind, ref.id, tmp_path / ref.id)
        files = [{path.name: path.read_bytes() for path in folder.iterdir()} for folder in (fetched, delivered)]
        assert files[0] == files[1]
        assert read_release(delivered).provenance["merge"] == merged.id
        # A release that is published already is delivered all the same.
        shutil.rmtree(delivered)
    assert [path.name for path in context.run.run.output.iterdir()] == []


def test_publishers_of_the_same_merge_at_once_make_one_release(
    context: StageContext, merged: ArtifactRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    contexts = [
        StageContext(
            context.run.model_copy(
                update={"run": context.run.run.model_copy(update={"output": context.work / str(i) / "out"})}
            ),
            context.store,
            context.work / str(i),
            Console(file=io.StringIO()),
        )
        for i in range(4)
    ]
    # All have seen that nothing is published before one publishes. (Models cannot be loaded in several threads.)
    together = threading.Barrier(len(contexts), timeout=60)
    monkeypatch.setattr(release, "check_adapter", lambda *_: together.wait())
    with ThreadPoolExecutor(len(contexts)) as pool:
        refs = list(pool.map(lambda own: release.run(own, merged, None), contexts))
    assert len(set(refs)) == 1
    assert context.store.ids("release") == [refs[0].id]
    assert read_pointer(context.store, "aligned") == refs[0].id


def test_a_pointer_that_another_moved_meanwhile_is_left_alone(
    context: StageContext, merged: ArtifactRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish = release.publish

    def publish_late(*args: object) -> ArtifactRef:
        swap_pointer(context.store, "aligned", None, "release-other")
        return publish(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(release, "publish", publish_late)
    with pytest.raises(PointerMoved):
        release.run(context, merged, None)
    assert read_pointer(context.store, "aligned") == "release-other"


def test_a_corrupt_release_is_rebuilt(context: StageContext, merged: ArtifactRef) -> None:
    ref = release.run(context, merged, None)
    [key] = [key for key in context.store.keys("artifacts/release/") if key.endswith(LORA_FILE)]
    context.store.write(key, b"rubbish")
    assert release.run(context, merged, None) == ref
    context.store.verify(*ref)


def with_key(context: StageContext, key: Path) -> StageContext:
    """Return the context of the same run with a signing key."""
    settings = context.run.release.model_copy(update={"signing_key": key})
    return replace(context, run=context.run.model_copy(update={"release": settings}))


def test_a_release_is_signed_also_one_that_is_published_already(
    context: StageContext, merged: ArtifactRef, tmp_path: Path
) -> None:
    private, public = make_keys(tmp_path / "keys")
    trusted = TrustedKeys.read([public], "serve.trusted_keys")
    unsigned = release.run(context, merged, None)
    with pytest.raises(UntrustedArtifact):
        context.store.fetch(*unsigned, tmp_path / "unsigned", trusted)
    assert release.run(with_key(context, private), merged, None) == unsigned, "the key is no part of the release"
    assert context.store.fetch(*unsigned, tmp_path / "signed", trusted).is_dir()


def test_what_another_put_in_the_releases_place_is_not_signed(
    context: StageContext, merged: ArtifactRef, tmp_path: Path
) -> None:
    private, _ = make_keys(tmp_path / "keys")
    ref = release.run(context, merged, None)
    context.store.discard(*ref)
    (tmp_path / "forged").mkdir()
    (tmp_path / "forged" / LORA_FILE).write_bytes(b"forged")
    context.store.put(*ref, tmp_path / "forged", config={}, seed=0)
    with pytest.raises(CorruptArtifact, match="other files than this run made"):
        release.run(with_key(context, private), merged, None)


def test_a_wrong_signing_key_is_told_before_anything_is_published(
    context: StageContext, merged: ArtifactRef, tmp_path: Path
) -> None:
    with pytest.raises(WrongKey, match=r"release.signing_key: .*missing.pem cannot be read"):
        release.run(with_key(context, tmp_path / "missing.pem"), merged, None)
    assert context.store.ids("release") == []


def refused(context: StageContext, folder: Path, match: str) -> None:
    """Check that a merge is refused by name of what is wrong, and that nothing was published."""
    ref = put_merge(context, folder, "merge-bad")
    with pytest.raises(ArtifactFormatError, match=match):
        release.run(context, ref, None)
    assert context.store.ids("release") == []
    assert read_pointer(context.store, "aligned") is None


def altered(merge: Path, change: Callable[[torch.Tensor], torch.Tensor], target: Path) -> Path:
    """Write a copy of an adapter with every tensor changed."""
    target.mkdir()
    save_file({name: change(t).contiguous() for name, t in load_file(merge / LORA_FILE).items()}, target / LORA_FILE)
    return target


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda t: torch.full_like(t, float("nan")), "not finite"),
        (lambda t: t * float("inf"), "not finite"),
        (torch.zeros_like, "changes no image"),
        # Finite numbers whose product overflows.
        (lambda t: torch.full_like(t, 3e38), "not finite"),
        (lambda t: t[:, :-1] if t.shape[1] > 2 else t, "adapter"),
    ],
    ids=["nan", "infinite", "zero", "overflow", "another base"],
)
def test_a_bad_adapter_is_refused(
    context: StageContext,
    merged: ArtifactRef,
    tmp_path: Path,
    change: Callable[[torch.Tensor], torch.Tensor],
    match: str,
) -> None:
    refused(context, altered(tmp_path / "merge", change, tmp_path / "bad"), match)


def test_a_merge_without_an_adapter_is_refused(context: StageContext, tmp_path: Path) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "notes.txt").write_text("no adapter here")
    refused(context, tmp_path / "bad", f"no {LORA_FILE}")


def test_a_report_without_readable_metrics_is_refused(
    context: StageContext, merged: ArtifactRef, tmp_path: Path
) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "metrics.json").write_text('{"ip": 3}')
    context.store.put("report", "report-broken", tmp_path / "broken", config={}, seed=0)
    with pytest.raises(ArtifactFormatError, match=r"metrics\.json"):
        release.run(context, merged, ArtifactRef("report", "report-broken"))
    assert context.store.ids("release") == []


def test_the_notice_is_the_taxonomys_and_the_caution_for_all() -> None:
    base = BaseModelIdentity(id="some/model", family="stable-diffusion", sha256="0" * 64)
    info = ReleaseInfo(name="x", base=base, adapter_sha256="1" * 64, judge=None, provenance={"merge": "a|b"})
    cards = [write_card(info, "mit", {}, None, notice) for notice in ("Stand-ins only.", None)]
    assert ["Stand-ins" in card for card in cards] == [True, False]
    assert all("It is no guarantee" in card and "not measured" in card for card in cards)
    assert "`a\\|b`" in cards[0]
    figures = write_card(info, "mit", {}, Measured.model_validate(metrics()), notice=None)
    assert "| base | 93.0% | 0.30 | 12.50 | 1.0% | 103 |" in figures
