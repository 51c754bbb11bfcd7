"""The merge job through real Ray and a real S3 server, on a tiny model: merges, resumption, errors."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from rich.console import Console

from cluster.errors import ImpossibleResources
from cluster.session import Session
from jobs.merge import search as merge_search
from jobs.merge import stage as merge
from jobs.merge.calibration import CALIBRATION_FILE
from jobs.merge.config import MergeConfig
from jobs.merge.files import RECIPE_FILE, REPORT_FILE, Searched
from jobs.merge.search import SearchInputs, TrialScorer
from jobs.run.artifacts import ArtifactRef, StageContext
from jobs.run.config import RunConfig
from jobs.run.metrics import BEST_SCORE, TRIALS
from jobs.run.work_area import Records
from safety.errors import ArtifactFormatError, ConfigError
from safety.families import ModelConfig, ModelFamily, load_model
from safety.lora.files import load_lora, save_lora
from safety.lora.weights import LoraLayer, LoraWeights
from safety.merge import load_calibration
from safety.merge.method import merge_label
from safety.merge.methods.co_merge import CoMerge, CoMergeConfig
from safety.merge.rendered_score import RenderedScore
from safety.merge.search import SearchSpace, Trial
from safety.prompts.files import PROMPTS_FILE, write_prompt_file
from safety.prompts.rows import PromptSet
from tests.support.merge_method_file import LABEL, NAME, add_method
from tests.support.no_model_here import no_model_here
from tests.support.prometheus import wait_for
from tests.support.small_sets import preferences, random_lora, write_sets
from tests.support.small_world import TAXONOMY, knife_prompts

CATEGORIES = ("violence", "hate")
SETTINGS = {
    "calibration": {"pairs_per_category": 2, "timesteps": [0.9, 0.4], "batch": 4},
    "search": {"trials": 4, "confirm": 1, "startup": 2},
    "surrogate": {"pairs_per_category": 2, "benign": 2, "batch": 4},
    "confirm": {"pairs_per_category": 1, "benign": 2},
    "render": {"steps": 2, "batch": 4},
}

pytestmark = [pytest.mark.ray]


def prompt_set() -> PromptSet:
    splits = ("train", "validation", "test")
    return knife_prompts(CATEGORIES, splits, splits)


@pytest.fixture(scope="module")
def model(tiny_model_dir: Path) -> ModelFamily:
    return load_model(ModelConfig(path=str(tiny_model_dir)))


@pytest.fixture(scope="module")
def context(session: Session, tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> StageContext:
    folder = tmp_path_factory.mktemp("run")
    run = RunConfig.model_validate(
        {
            "run": {"name": "test-merge", "seed": 3, "output": folder / "out"},
            "model": {"path": str(tiny_model_dir)},
            "merge": SETTINGS,
        }
    )
    return StageContext(run, session.store, folder / "work", Console(file=io.StringIO(), width=160))


def changed(context: StageContext, **settings: Any) -> StageContext:
    """Return the context with other settings of the merge."""
    document = context.run.merge.model_dump(mode="json") | settings
    run = context.run.model_copy(update={"merge": MergeConfig.model_validate(document)})
    return StageContext(run, context.store, context.work, context.console)


def put(context: StageContext, kind: str, name: str, folder: Path) -> ArtifactRef:
    context.store.put(kind, name, folder, config={}, seed=0)
    return ArtifactRef(kind, name)


@pytest.fixture(scope="module")
def dataset(context: StageContext, model: ModelFamily, tmp_path_factory: pytest.TempPathFactory) -> ArtifactRef:
    folder = tmp_path_factory.mktemp("dataset")
    write_prompt_file(prompt_set(), folder / PROMPTS_FILE)
    write_sets(folder, *(preferences(model, prompt_set(), category) for category in CATEGORIES))
    return put(context, "dataset", "dataset-pico", folder)


@pytest.fixture(scope="module")
def experts(
    context: StageContext, model: ModelFamily, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, ArtifactRef]:
    found = {}
    for seed, name in enumerate(("all-single", *CATEGORIES)):
        folder = tmp_path_factory.mktemp(name)
        save_lora(random_lora(model, seed), folder, metadata={})
        found[name] = put(context, "expert", f"expert-{name}", folder)
    return found


@pytest.fixture(scope="module")
def merges(context: StageContext, dataset: ArtifactRef, experts: dict[str, ArtifactRef]) -> dict[str, ArtifactRef]:
    with no_model_here():
        return merge.run(context, dataset, experts)


def weights_of(context: StageContext, refs: Mapping[str, ArtifactRef]) -> dict[str, LoraWeights]:
    return {name: load_lora(context.folder(ref)) for name, ref in refs.items()}


def assert_same(found: LoraWeights, expected: LoraWeights) -> None:
    assert set(found) == set(expected)
    for name, layer in expected.items():
        torch.testing.assert_close(found[name].delta(), layer.delta(), rtol=1e-4, atol=1e-6)


def test_every_merge_is_what_its_recipe_says(
    context: StageContext, merges: dict[str, ArtifactRef], experts: dict[str, ArtifactRef]
) -> None:
    assert set(merges) == {"co-merge", "co-merge-default", "average", "task-arithmetic"}
    single = weights_of(context, {name: experts[name] for name in CATEGORIES})
    found = weights_of(context, merges)
    total = {name: sum(e[name].delta() for e in single.values()) for name in found["average"]}
    for name, layer in found["task-arithmetic"].items():
        torch.testing.assert_close(layer.delta(), total[name], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(found["average"][name].delta(), total[name] / 2, rtol=1e-4, atol=1e-6)
    for name in ("co-merge", "co-merge-default"):
        recipe = yaml.safe_load((context.folder(merges[name]) / RECIPE_FILE).read_text())
        assert recipe["experts"] == {c: experts[c].id for c in CATEGORIES}
        calibration = context.folder(ArtifactRef("calibration", recipe["calibration"])) / CALIBRATION_FILE
        again = CoMerge()(single, load_calibration(calibration), CoMergeConfig.model_validate(recipe["parameters"]))
        assert_same(found[name], again.weights)


def test_the_search_starts_at_the_start_and_does_not_lose_to_it(
    context: StageContext, merges: dict[str, ArtifactRef]
) -> None:
    folder = context.folder(merges["co-merge"])
    report = json.loads((folder / REPORT_FILE).read_text())["search"]
    searched = Searched.model_validate({key: report[key] for key in Searched.model_fields})
    space = SearchSpace(CATEGORIES, context.run.merge.co_merge, context.run.merge.search)
    assert len(searched.trials) == 4
    assert searched.trials[0].parameters == space.start
    assert set(searched.confirmed) == {0, min(range(1, 4), key=lambda index: searched.trials[index].score)}
    assert searched.confirmed[searched.chosen].objective == min(s.objective for s in searched.confirmed.values())
    files = {path.name for path in folder.iterdir()}
    assert {"pytorch_lora_weights.safetensors", "README.md", "shares.png", "search.png"} <= files
    card = (folder / "README.md").read_text()
    assert "base_model" in card
    assert yaml.safe_load(card.split("```yaml\n")[1].split("```")[0])["parameters"]["granularity"] in ("row", "weight")
    logs = [path.name for path in (context.run.run.output / "logs").rglob("*")]
    assert sum(name.startswith("events.out.tfevents") for name in logs) == 4
    assert logs.count("result.json") == logs.count("progress.csv") == 4


def test_prometheus_sees_the_trials_and_the_best_score(context: StageContext, merges: dict[str, ArtifactRef]) -> None:
    report = json.loads((context.folder(merges["co-merge"]) / REPORT_FILE).read_text())["search"]
    best = min(trial["score"] for trial in report["trials"])
    assert wait_for(BEST_SCORE.exported, (), "test-merge", bool)[()] == pytest.approx(best, rel=1e-6)
    assert wait_for(TRIALS.exported, (), "test-merge", lambda found: found == {(): 4.0}) == {(): 4.0}


def test_stock_diffusers_loads_a_merge(
    context: StageContext, merges: dict[str, ArtifactRef], tiny_model_dir: Path
) -> None:
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(
        tiny_model_dir, safety_checker=None, requires_safety_checker=False, local_files_only=True
    )
    name = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    plain = pipe.unet.get_submodule(name).weight.detach().clone()
    folder = context.folder(merges["co-merge"])
    pipe.load_lora_weights(folder)
    pipe.fuse_lora()
    changed_by = pipe.unet.get_submodule(name).base_layer.weight.detach() - plain
    torch.testing.assert_close(changed_by, load_lora(folder)[name].delta(), rtol=1e-3, atol=1e-5)


def test_finished_merges_are_not_made_again(
    context: StageContext,
    dataset: ArtifactRef,
    experts: dict[str, ArtifactRef],
    merges: dict[str, ArtifactRef],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(merge, "merge_missing", lambda *_: pytest.fail("something was merged again"))
    assert merge.run(context, dataset, experts) == merges


def test_a_search_that_was_cut_off_goes_on_from_its_finished_trials(
    context: StageContext,
    dataset: ArtifactRef,
    experts: dict[str, ArtifactRef],
    merges: dict[str, ArtifactRef],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ref = merges["co-merge"]
    records = Records(context.store, ref)
    area = records.area
    before = {trial.finished: trial for trial in records.all("trials", Trial)}
    confirmed = records.all("confirmed", RenderedScore)
    assert (len(before), len(confirmed)) == (4, 2)
    report = json.loads((context.folder(ref) / REPORT_FILE).read_text())["search"]
    last = report["trials"][-1]["parameters"]
    # The run dies with three of four trials finished, one more record half written, nothing published.
    trials = {name: Trial.model_validate_json(area.read(name) or b"") for name in area.names("trials/")}
    broken = next(name for name, trial in trials.items() if trial.parameters == last)
    context.store.write(area.place + broken, b'{"parameters": {')
    context.store.discard(ref.kind, ref.id)
    left: list[int] = []
    real = merge_search.run_trials

    def spy(inputs: Any, found: Any, done: Any, count: int, *rest: Any) -> Any:
        left.append(count)
        return real(inputs, found, done, count, *rest)

    monkeypatch.setattr(merge_search, "run_trials", spy)
    assert merge.run(context, dataset, experts)["co-merge"] == ref
    assert left == [1]
    after = {trial.finished: trial for trial in records.all("trials", Trial)}
    kept = [finished for finished in before if finished in after]
    assert len(kept) == 3
    assert len(after) == 4
    assert all(after[finished] == before[finished] for finished in kept)


def test_an_error_of_every_point_ends_the_search_at_the_first_try(
    context: StageContext, model: ModelFamily, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[str] = []
    check = merge_search._EndAtOnce._check

    def count(ending: Any, trial: Any) -> None:
        tries.append(trial.trial_id)
        check(ending, trial)

    monkeypatch.setattr(merge_search._EndAtOnce, "_check", count)
    inputs: Any = SearchInputs(
        run="broken",
        model=ModelConfig(path=str(tmp_path / "none")),
        taxonomy=TAXONOMY,
        config=changed(context, max_failures=3).run.merge,
        seed=0,
        prompts=prompt_set(),
        experts={name: random_lora(model, 0) for name in CATEGORIES},
        # Neither is read before the model is loaded.
        statistics=None,  # type: ignore[arg-type]
        probes=None,  # type: ignore[arg-type]
    )
    with pytest.raises(ConfigError, match="no diffusers-format model in"):
        merge_search.search(inputs, Records(context.store, ArtifactRef("merge", "broken")), tmp_path, context.console)
    assert len(tries) == 1


def test_a_recorded_point_is_not_scored_again(context: StageContext) -> None:
    space = SearchSpace(CATEGORIES, CoMergeConfig(), context.run.merge.search)
    records = Records(context.store, ArtifactRef("merge", "recorded"))
    trial = Trial(
        parameters=space.start, score=0.5, harm=0.5, drift=0.0, harm_by_category={"hate": 0.5}, seconds=1, finished=2
    )
    records.write("trials", space.start, trial)
    # There is nothing to score with: only the record can answer.
    assert TrialScorer(None, records).score(space.start) == trial  # type: ignore[arg-type]


def test_a_method_in_a_file_of_its_own_is_merged_by_its_name(
    context: StageContext,
    dataset: ArtifactRef,
    experts: dict[str, ArtifactRef],
    merges: dict[str, ArtifactRef],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    add_method(tmp_path, monkeypatch)
    found = merge.run(changed(context, baselines=[{"name": NAME, "scale": 0.5}]), dataset, experts)
    # The searched merge and its start do not depend on what they are compared with.
    assert {name: ref for name, ref in found.items() if name != NAME} == {
        name: merges[name] for name in ("co-merge", "co-merge-default")
    }
    first = load_lora(context.folder(experts[CATEGORIES[0]]))
    assert_same(load_lora(context.folder(found[NAME])), first.scaled(0.5))
    recipe = yaml.safe_load((context.folder(found[NAME]) / RECIPE_FILE).read_text())
    assert (recipe["method"], recipe["parameters"], recipe["calibration"]) == (NAME, {"scale": 0.5}, None)
    assert merge_label(NAME) == LABEL


def test_wrong_experts_and_resources_are_named(
    context: StageContext,
    dataset: ArtifactRef,
    experts: dict[str, ArtifactRef],
    model: ModelFamily,
    tmp_path: Path,
) -> None:
    with pytest.raises(ConfigError, match="no expert of any category among: all-single"):
        merge.run(context, dataset, {"all-single": experts["all-single"]})
    with pytest.raises(ImpossibleResources, match=r"merge\.cpus_per_worker.*500 CPU"):
        merge.run(
            changed(context, cpus_per_worker=500, baselines=[{"name": "task-arithmetic", "scale": 2.0}]),
            dataset,
            experts,
        )
    layer = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    save_lora(LoraWeights({layer: LoraLayer(torch.ones(1, 7), torch.ones(9, 1))}), tmp_path, metadata={})
    other = put(context, "expert", "expert-of-another-base", tmp_path)
    with pytest.raises(ArtifactFormatError, match=r"adapter: mid_block.*\(9, 7\) in the adapter"):
        merge.run(context, dataset, {"hate": other})
