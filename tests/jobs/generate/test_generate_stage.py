"""Generation through real Ray Data and real S3, with a tiny random model and a judge of pixel sums."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
import yaml
from rich.console import Console

from cluster.errors import CorruptArtifact, ImpossibleResources
from cluster.session import Session
from cluster.store.artifacts import ArtifactStore
from cluster.store.config import StoreConfig
from cluster.store.folder import FolderObjects
from jobs.generate import stage as generate
from jobs.generate.groups import FIGURES_FILE, GroupStore, dump_figures, stored_files
from jobs.run.artifacts import ArtifactRef, StageContext, artifact_ref, finished
from jobs.run.config import RunConfig
from jobs.run.metrics import GROUP_SECONDS, IMAGES, ROWS
from safety.dataset.filter import RejectionReason
from safety.dataset.group_files import GroupFigures, StoredFile
from safety.dataset.latents import EMPTY_FILE, write_empty
from safety.dataset.plan import DatasetPlan, Group
from safety.dataset.published import data_file
from safety.dataset.record import Record
from safety.dataset.summary import DatasetSummary, SplitCount
from safety.errors import ConfigError, EmptyDatasetError
from safety.prompts.rows import BenignPrompt, PromptSet
from tests.conftest import written
from tests.support.no_model_here import no_model_here
from tests.support.prometheus import wait_for
from tests.support.small_world import BENIGN_ROWS, COUNTS, PAIRS, TAXONOMY

GROUP_SIZE = 8
GROUPS = 2 * (56 // GROUP_SIZE) + BENIGN_ROWS // GROUP_SIZE

DRIVER = """
import sys
import ray, yaml
from pathlib import Path
from rich.console import Console
from cluster.store.artifacts import ArtifactStore
from jobs.generate import stage as generate
from jobs.run.config import RunConfig
from jobs.run.artifacts import StageContext
from tests.support import small_world

address, config, work = sys.argv[1:]
run = RunConfig.model_validate(yaml.safe_load(Path(config).read_text()))
ray.init(address=address, log_to_driver=False)
generate.run(StageContext(run=run, store=ArtifactStore(run.store), work=Path(work), console=Console(quiet=True)))
"""


@pytest.fixture(scope="module")
def make_context(
    session: Session, tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., StageContext]:
    """Return a function that makes a run's context on a prefix of its own; settings go to ``generate``."""
    taxonomy = tmp_path_factory.mktemp("taxonomy") / "small.yaml"
    taxonomy.write_text(yaml.safe_dump(TAXONOMY.model_dump(mode="json")), encoding="utf-8")

    def make(prefix: str, *, model: dict[str, Any] | None = None, **settings: Any) -> StageContext:
        work = tmp_path_factory.mktemp("work")
        store = session.store.config.model_copy(update={"prefix": f"{session.store.config.prefix}-{prefix}"})
        document = {
            "run": {"name": f"test-{prefix}", "output": str(work / "out")},
            "store": store.model_dump(mode="json"),
            "model": {"path": str(tiny_model_dir), **(model or {})},
            "taxonomy": str(taxonomy),
            "generate": {
                "writer": "small",
                "counts": COUNTS.model_dump(),
                "render": {"steps": 2, "batch": 8},
                "judge": {"name": "tests.support.pixel_judge:load_pixel_judge"},
                "group_size": GROUP_SIZE,
                **settings,
            },
        }
        run = RunConfig.model_validate(document)
        console = Console(file=io.StringIO(), width=200)
        return StageContext(run=run, store=ArtifactStore(StoreConfig(**store.model_dump())), work=work, console=console)

    return make


@pytest.fixture
def make_run_context(tmp_path: Path) -> Callable[[ArtifactStore], StageContext]:
    """Return a function that makes the context of a run that needs no cluster."""
    run = RunConfig.model_validate({"run": {"name": "test", "output": str(tmp_path / "out")}})
    return lambda store: StageContext(run, store, tmp_path / "work", Console(file=io.StringIO(), width=200))


def said(context: StageContext) -> str:
    assert isinstance(context.console.file, io.StringIO)
    return context.console.file.getvalue()


def summary_of(context: StageContext, ref: ArtifactRef) -> DatasetSummary:
    return DatasetSummary.model_validate_json((context.folder(ref) / "summary.json").read_bytes())


@pytest.fixture(scope="module")
def first(make_context: Callable[..., StageContext]) -> tuple[StageContext, ArtifactRef]:
    """A dataset made by one diffusion actor."""
    context = make_context("one", actors=1)
    with no_model_here():
        return context, generate.run(context)


@pytest.mark.ray
def test_one_actor_makes_a_whole_dataset(first: tuple[StageContext, ArtifactRef]) -> None:
    context, ref = first
    summary = summary_of(context, ref)
    assert summary.rows == PAIRS + BENIGN_ROWS
    assert 0 < summary.kept < summary.rows
    folder = context.folder(ref)
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert names >= {"latents/empty.safetensors", "prompts.parquet", "groups.jsonl", "README.md", "summary.json"}
    places = {re.sub(r"[0-9]{6}\.(parquet|safetensors)", "*", name) for name in names}
    assert places >= {"data/train-*", "data/validation-*", "rejected/*"}
    assert places >= {"latents/violence/*", "latents/very-shocking/*", "latents/benign/*"}
    assert f"{summary.rows} rows in = {summary.kept} kept + {summary.rows - summary.kept} rejected" in said(context)
    assert context.store.keys("work/") == []
    assert "another node" not in said(context), "there is one node"


@pytest.mark.ray
def test_prometheus_sees_every_row_and_image(first: tuple[StageContext, ArtifactRef]) -> None:
    expected: dict[tuple[str, ...], float] = {}
    for count in summary_of(*first).counts:
        for outcome, rows in (("kept", count.kept), *count.rejected.items()):
            if rows:
                key = (count.category, str(outcome))
                expected[key] = expected.get(key, 0.0) + rows
    rows = wait_for(ROWS.exported, ("category", "outcome"), "test-one", lambda found: found == expected)
    assert rows == expected
    images = {("generate",): 2.0 * PAIRS + BENIGN_ROWS}
    assert wait_for(IMAGES.exported, ("stage",), "test-one", lambda found: found == images) == images
    groups = {("generate",): float(GROUPS)}
    seconds = f"{GROUP_SECONDS.exported}_count"
    assert wait_for(seconds, ("stage",), "test-one", lambda found: found == groups) == groups


@pytest.mark.ray
def test_a_published_dataset_is_not_made_again(first: tuple[StageContext, ArtifactRef]) -> None:
    context, ref = first
    started = time.monotonic()
    assert generate.run(context) == ref
    assert "already published" in said(context)
    assert time.monotonic() - started < 60
    assert context.store.keys("work/") == []


@pytest.mark.ray
def test_a_killed_run_goes_on_where_it_was_and_two_actors_make_the_same_rows(
    make_context: Callable[..., StageContext],
    first: tuple[StageContext, ArtifactRef],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    context = make_context("two", actors=2, judge={"name": "tests.support.pixel_judge:load_slow_judge"})
    kill_after_some_groups(context, tmp_path)
    done = context.store.keys("work/")
    groups = sorted(key for key in done if "/groups/" in key)
    assert 0 < len(groups) < GROUPS
    # One of the finished groups is corrupt; the others must not be touched.
    corrupt = groups.pop(0)
    context.store.write(corrupt, b"{ and then nothing")
    before = written(context.store, groups)

    monkeypatch.setattr(GroupStore, "clear", lambda self: None)
    ref = generate.run(context)
    after = [key for key in context.store.keys("work/") if "/groups/" in key]
    assert len(after) == GROUPS
    assert corrupt in after
    assert written(context.store, groups) == before
    assert f"{len(groups)} of {GROUPS} groups are finished already" in said(context)
    one_context, one_ref = first
    assert ref != one_ref
    assert summary_of(context, ref).dataset_hash == summary_of(one_context, one_ref).dataset_hash


def kill_after_some_groups(context: StageContext, folder: Path) -> None:
    """Run the job in a process of its own and kill it when a few groups are in the store."""
    config = folder / "run.yaml"
    config.write_text(yaml.safe_dump(context.run.model_dump(mode="json")), encoding="utf-8")
    address = ray.get_runtime_context().gcs_address
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, address, str(config), str(folder / "work")],
        env={**os.environ, "PYTHONPATH": str(Path(generate.__file__).parents[2])},
    )
    try:
        while len([key for key in context.store.keys("work/") if "/groups/" in key]) < 3:
            assert driver.poll() is None, "the driver ended by itself"
            time.sleep(0.05)
    finally:
        driver.kill()
        driver.wait()


@pytest.mark.ray
def test_an_actors_failure_is_reported_by_its_first_cause(make_context: Callable[..., StageContext]) -> None:
    context = make_context("wrong", actors=1, render={"steps": 2, "height": 15})
    with pytest.raises(ConfigError, match="height: 15 is not a positive multiple of 4"):
        generate.run(context)


@pytest.mark.ray
@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"gpus_per_actor": 1.0}, "generate.gpus_per_actor"),
        ({"cpus_per_actor": 64.0}, "generate.cpus_per_actor"),
        ({"cpus_per_judge": 64.0}, "generate.cpus_per_judge"),
    ],
)
def test_impossible_resources_are_refused_at_once(
    make_context: Callable[..., StageContext], settings: dict[str, float], field: str
) -> None:
    started = time.monotonic()
    with pytest.raises(ImpossibleResources, match=field):
        generate.run(make_context("impossible", **settings))
    assert time.monotonic() - started < 30


@pytest.mark.ray
def test_a_model_on_a_gpu_needs_actors_with_one(make_context: Callable[..., StageContext]) -> None:
    with pytest.raises(ConfigError, match=r"generate\.gpus_per_actor: the model is on 'cuda'"):
        generate.run(make_context("cuda", model={"device": "cuda"}, gpus_per_actor=0))
    with pytest.raises(ImpossibleResources, match=r"generate\.gpus_per_actor"):
        generate.run(make_context("auto", model={"device": "cuda"}))


def test_where_the_work_runs_does_not_name_the_dataset(make_context: Callable[..., StageContext]) -> None:
    def name(**settings: Any) -> str:
        context = make_context("names", **settings)
        taxonomy = context.run.load_taxonomy()
        provenance = generate.describe(context, taxonomy)
        return artifact_ref(context, "dataset", generate.dataset_settings(context, taxonomy, provenance)).id

    assert name() == name(actors=7, cpus_per_actor=0.5, gpus_per_actor=0.5, judge_actors=3, timeout_s=5.0)
    assert (
        len(
            {
                name(),
                name(group_size=4),
                name(render={"steps": 3}),
                name(judge={"name": "tests.support.pixel_judge:load_slow_judge"}),
            }
        )
        == 4
    )


def finished_group(category: str, rows: int, **outcomes: int) -> dict[str, Any]:
    return {"category": category, "rows": rows, "outcomes": json.dumps(outcomes)}


def test_a_category_that_keeps_nothing_in_its_first_groups_ends_the_stage() -> None:
    barren = generate.BarrenCategories()
    for _ in range(2):
        barren.add(finished_group("violence", 16, unsafe_not_shown=16))
        barren.add(finished_group("hate", 16, unsafe_not_shown=15, kept=1))
    barren.add(finished_group("hate", 16, unsafe_not_shown=16))
    with pytest.raises(
        EmptyDatasetError, match=r"none of the 48 train rows of 'violence' is kept \(unsafe_not_shown 48\)"
    ):
        barren.add(finished_group("violence", 16, unsafe_not_shown=16))
    few = generate.BarrenCategories()
    for _ in range(9):
        few.add(finished_group("violence", 4, unsafe_not_shown=4))


def test_a_category_of_which_an_earlier_start_kept_rows_is_not_barren() -> None:
    def earlier(kept: int) -> GroupFigures:
        reasons = {RejectionReason.UNSAFE_NOT_SHOWN: 16 - kept}
        count = SplitCount(category="violence", split="train", rows=16, kept=kept, rejected=reasons)
        return GroupFigures(category="violence", digest="0", counts=(count,), files={})

    barren = generate.BarrenCategories([earlier(1)])
    for _ in range(9):
        barren.add(finished_group("violence", 16, unsafe_not_shown=16))
    with pytest.raises(EmptyDatasetError, match="none of the 48 train rows"):
        generate.BarrenCategories([earlier(0)] * 2).add(finished_group("violence", 16, unsafe_not_shown=16))


def test_more_groups_than_a_manifest_can_name_are_refused_before_any_work() -> None:
    row = BenignPrompt(prompt_id="b", prompt="p", split="train", writer="w")
    prompts = PromptSet(pairs=(), benign=(row,))
    generate.require_room(DatasetPlan(prompts, (Group(0, "benign", (row,), 0),) * 50_000, {}), 1)
    with pytest.raises(ConfigError, match=r"generate\.group_size: 60000 rows .*raise it to 2"):
        generate.require_room(DatasetPlan(prompts, (Group(0, "benign", (row,), 0),) * 60_000, {}), 1)


def rejected(prompt_id: str) -> Record:
    row = BenignPrompt(prompt_id=prompt_id, prompt="p", split="train", writer="w")
    return Record(row=row, seed=1, reason=RejectionReason.BENIGN_FLAGGED)


def test_groups_are_read_back_whole_or_not_at_all(store: ArtifactStore) -> None:
    groups = GroupStore(store, ArtifactRef("dataset", "d"))
    for index in (3, 11):
        groups.store_group(index, [rejected(f"b-{index}")], "m")
    assert groups.numbers() == [3, 11]
    assert groups.read(11).rows == 1
    third, eleventh = store.keys(f"{groups.area.place}groups/")
    store.write(eleventh, store.read(third) or b"")
    with pytest.raises(CorruptArtifact, match="missing or corrupt.*rebuilds"):
        groups.read(11)
    assert groups.verified() == set(), "the actor that rebuilds the last group writes the empty prompt's states, too"
    groups.write_empty({"states": torch.zeros(1, 3, 2)})
    assert groups.verified() == {3}
    groups.clear()
    assert store.keys("work/") == []


@pytest.mark.parametrize("damage", ["deleted", "cut"])
def test_a_group_whose_shard_is_not_whole_is_made_again(store: ArtifactStore, damage: str) -> None:
    groups = GroupStore(store, ArtifactRef("dataset", "d"))
    groups.write_empty({"states": torch.zeros(1, 3, 2)})
    for index in range(3):
        groups.store_group(index, [rejected(f"b-{index}")], "m")
    [key] = [key for key in store.keys("artifacts/") if key.endswith("rejected/000001.parquet")]
    whole = store.read(key) or b""
    store.delete(key)
    if damage == "cut":
        store.write(key, whole[:-1])
    assert groups.verified() == {0, 2}
    groups.store_group(1, [rejected("b-1")], "m")
    assert groups.verified() == {0, 1, 2}
    assert store.read(key) == whole


def published_groups(store: ArtifactStore, folder: Path) -> GroupStore:
    """Return the groups of a dataset that is published, whose work area is cleared as a stage does it."""
    ref = ArtifactRef("dataset", "d")
    groups = GroupStore(store, ref)
    groups.write_empty({"states": torch.zeros(1, 3, 2)})
    for index in range(3):
        groups.store_group(index, [rejected(f"b-{index}")], "m")
    found = groups.finished()
    write_empty(folder / EMPTY_FILE, groups.read_empty())
    (folder / FIGURES_FILE).write_bytes(dump_figures(found))
    store.put(*ref, folder, config={}, seed=0, stored=stored_files(found))
    groups.clear()
    return groups


@pytest.mark.parametrize(
    ("lost", "left"),
    [
        ("rejected/000001.parquet", {0, 2}),
        (EMPTY_FILE, {0, 1}),
        (FIGURES_FILE, set()),
    ],
)
def test_a_dataset_that_has_lost_a_file_goes_on_from_the_groups_that_are_whole(
    store: ArtifactStore, tmp_path: Path, lost: str, left: set[int]
) -> None:
    groups = published_groups(store, tmp_path)
    [key] = [key for key in store.keys("artifacts/") if key.endswith(f"/{lost}")]
    store.delete(key)
    groups.reopen("dataset", "d")
    assert store.manifest("dataset", "d") is None
    assert groups.verified() == left
    kept = [name for name in store.keys("artifacts/") if "/rejected/" in name]
    assert len(kept) == (0 if lost == FIGURES_FILE else 3 - (lost.startswith("rejected"))), "no whole file is deleted"


def test_what_a_run_left_that_died_right_after_publishing_is_deleted(
    store: ArtifactStore, tmp_path: Path, make_run_context: Callable[[ArtifactStore], StageContext]
) -> None:
    groups = published_groups(store, tmp_path)
    before = store.keys("")
    store.add("dataset", "d", "rejected/000001.parquet", b"by another process, and other bytes")
    groups.store_group(1, [rejected("b-1")], "m")
    assert generate._is_published(make_run_context(store), ArtifactRef("dataset", "d"), groups)
    assert store.keys("") == before


def test_a_corrupt_shard_that_the_grid_needs_is_made_again_and_not_met_at_every_start(store: ArtifactStore) -> None:
    groups = GroupStore(store, ArtifactRef("dataset", "d"))
    groups.write_empty({"states": torch.zeros(1, 3, 2)})
    groups.store_group(0, [rejected("b-0")], "m")
    entry = store.add("dataset", "d", data_file("train", 0), b"pairs")
    file = StoredFile(size=entry.size, sha256=entry.sha256)
    figures = groups.read(0).model_copy(update={"files": {data_file("train", 0): file}})
    groups.area.write("groups/000000.json", figures.model_dump_json().encode())
    [key] = [key for key in store.keys("artifacts/") if "/data/" in key]
    store.write(key, b"PAIRS")
    assert groups.verified() == {0}, "its size is right"
    with pytest.raises(CorruptArtifact, match="data/train-000000"):
        groups.samples(0, figures)
    assert groups.verified() == set()


@pytest.mark.ray
def test_one_corrupt_shard_is_found_at_use_and_costs_its_group_alone(
    first: tuple[StageContext, ArtifactRef], tmp_path: Path
) -> None:
    context, ref = first
    before = context.store.manifest(*ref)
    [key] = [key for key in context.store.keys("artifacts/dataset") if "latents/violence/" in key][:1]
    data = context.store.read(key) or b""
    context.store.write(key, data[:500] + bytes([data[500] ^ 1]) + data[501:])
    fresh = replace(context, work=tmp_path / "another machine")
    assert finished(fresh, ref), "its size is right, and nothing was read"
    with pytest.raises(CorruptArtifact, match="latents/violence"):
        fresh.folder(ref, "latents/violence/*")
    assert generate.run(fresh) == ref
    assert f"{GROUPS - 1} of {GROUPS} groups are finished already" in said(context)
    after = context.store.verify(*ref)
    assert before is not None
    assert after.files == before.files, "byte for byte"
    assert context.store.keys("work/") == []


@pytest.mark.ray
def test_the_driver_pulls_neither_images_nor_latents(
    make_context: Callable[..., StageContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    context = make_context("bytes", actors=1)
    moved: list[tuple[str, int]] = []

    def counted(name: str, size: Callable[..., int]) -> None:
        real = getattr(FolderObjects, name)

        def call(self: FolderObjects, key: str, *rest: Any, **named: Any) -> Any:
            found = real(self, key, *rest, **named)
            moved.append((key, size(found, *rest)))
            return found

        monkeypatch.setattr(FolderObjects, name, call)

    counted("read_versioned", lambda found, *_: 0 if found is None else len(found.data))
    counted("write", lambda _found, data, *_: len(data))
    counted("upload", lambda _found, path, *_: Path(path).stat().st_size)
    counted("download", lambda _found, path, *_: Path(path).stat().st_size if Path(path).exists() else 0)
    ref = generate.run(context)
    big = {key for key, _ in moved if "/files/" in key}
    assert not [key for key in big if "data/" in key or ("latents/" in key and "empty" not in key)]
    manifest = context.store.manifest(*ref)
    assert manifest is not None
    assert {name.split("/")[0] for name in manifest.files} >= {"data", "latents", "rejected"}


@pytest.mark.ray
def test_a_second_copy_of_a_run_reads_a_manifest_and_no_file(
    first: tuple[StageContext, ArtifactRef], monkeypatch: pytest.MonkeyPatch
) -> None:
    context, ref = first
    read: list[str] = []
    real = FolderObjects.read_versioned

    def reading(self: FolderObjects, key: str) -> Any:
        read.append(key)
        return real(self, key)

    monkeypatch.setattr(FolderObjects, "read_versioned", reading)
    monkeypatch.setattr(FolderObjects, "download", lambda *_: pytest.fail("it fetches a file"))
    assert finished(context, ref)
    assert read == [f"artifacts/dataset/{ref.id}/manifest.json"]
