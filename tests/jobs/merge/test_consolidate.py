"""The consolidation job through real Ray and a real S3 server, on a tiny model, against training in this process."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch
from rich.console import Console

from cluster.session import Session
from jobs.merge import consolidate
from jobs.merge.config import ConsolidateConfig
from jobs.merge.consolidate import REPORT_FILE, Consolidation
from jobs.merge.files import truncation_error
from jobs.run.artifacts import ArtifactRef, StageContext
from jobs.run.config import RunConfig
from jobs.stages import Stages
from jobs.train.config import CONSOLIDATED
from jobs.train.worker import ExpertTask, load_sets, pairs_of
from safety.experts.engine import TorchEngine
from safety.experts.expert import Expert
from safety.experts.training import ExpertTraining
from safety.families import ModelConfig, ModelFamily, load_model
from safety.judges.judge import load_judge
from safety.lora.files import load_lora, save_lora
from safety.lora.weights import LoraWeights
from safety.merge.rendered_score import choose_prompts, score_by_rendering
from safety.prompts.files import PROMPTS_FILE, write_prompt_file
from tests.support.no_model_here import no_model_here
from tests.support.small_sets import preferences, random_lora, write_sets
from tests.support.small_world import knife_prompts

CATEGORIES = ("violence", "hate")
PROMPTS = knife_prompts(CATEGORIES, ("train", "validation", "test"), ("train", "validation", "test"))
SCALES = (0.5, 1.0, 1.5)
CONFIG = ConsolidateConfig(steps=4, rows=4, benign_rows=2, learning_rate=1e-2, scales=SCALES)

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def model(tiny_model_dir: Path) -> ModelFamily:
    return load_model(ModelConfig(path=str(tiny_model_dir)))


@pytest.fixture(scope="module")
def context(session: Session, tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> StageContext:
    folder = tmp_path_factory.mktemp("run")
    run = RunConfig.model_validate(
        {
            "run": {"name": "test-consolidate", "seed": 3, "output": folder / "out"},
            "model": {"path": str(tiny_model_dir)},
            "train": {"categories": CATEGORIES, "expert": {"warmup": 1, "validation_rows": 2, "checkpoint_every": 2}},
            "merge": {
                "confirm": {"pairs_per_category": 1, "benign": 2},
                "render": {"steps": 2, "batch": 4},
                "workers": 1,
            },
            "consolidate": CONFIG.model_dump(mode="json"),
        }
    )
    return StageContext(run, session.store, folder / "work", Console(file=io.StringIO(), width=160))


@pytest.fixture(scope="module")
def dataset(context: StageContext, model: ModelFamily, tmp_path_factory: pytest.TempPathFactory) -> ArtifactRef:
    folder = tmp_path_factory.mktemp("dataset")
    write_prompt_file(PROMPTS, folder / PROMPTS_FILE)
    write_sets(folder, *(preferences(model, PROMPTS, category) for category in CATEGORIES))
    return put(context, "dataset", "dataset-consolidate", folder)


@pytest.fixture(scope="module")
def merged(context: StageContext, model: ModelFamily, tmp_path_factory: pytest.TempPathFactory) -> ArtifactRef:
    folder = tmp_path_factory.mktemp("merged")
    save_lora(random_lora(model, 5), folder, metadata={})
    (folder / REPORT_FILE).write_text(json.dumps({"svd_error": {"overall": 0.125}}), encoding="utf-8")
    return put(context, "merge", "merge-consolidate", folder)


def put(context: StageContext, kind: str, name: str, folder: Path) -> ArtifactRef:
    context.store.put(kind, name, folder, config={}, seed=0)
    return ArtifactRef(kind, name)


@pytest.fixture(scope="module")
def task(context: StageContext, dataset: ArtifactRef, merged: ArtifactRef) -> ExpertTask:
    return consolidate.plan(context, dataset, merged, CONFIG)


@pytest.fixture(scope="module")
def found(context: StageContext, dataset: ArtifactRef, merged: ArtifactRef) -> ArtifactRef:
    with no_model_here():
        return consolidate.run(context, dataset, merged, CONFIG)


@pytest.fixture(scope="module")
def report(context: StageContext, found: ArtifactRef) -> Consolidation:
    return Consolidation.model_validate_json((context.folder(found) / REPORT_FILE).read_bytes())


def test_its_report_says_what_cutting_the_merge_to_its_rank_cost(
    context: StageContext, found: ArtifactRef, report: Consolidation
) -> None:
    assert report.truncation == 0.125
    # The release's card, too.
    assert truncation_error(context.folder(found)) == 0.125


def assert_same(found: LoraWeights, expected: LoraWeights) -> None:
    assert set(found) == set(expected)
    for name, layer in expected.items():
        torch.testing.assert_close(found[name].delta(), layer.delta(), rtol=1e-3, atol=1e-5)


def test_it_trains_the_merge_on_by_all_categories_together(
    context: StageContext, found: ArtifactRef, task: ExpertTask, merged: ArtifactRef
) -> None:
    start = load_lora(context.folder(merged))
    pairs = pairs_of(task, load_sets([task]))
    assert {name.split("-")[0] for name in pairs.ids} == set(CATEGORIES)
    torch.set_num_threads(1)
    expert = Expert(load_model(task.model), pairs, task.config.expert, task.seed, start=start)
    assert_same(expert.weights(), start)
    ExpertTraining(expert, TorchEngine(expert)).run()
    trained = load_lora(context.folder(task.ref))
    assert_same(trained, expert.weights())
    name = next(iter(start))
    assert not torch.allclose(trained[name].delta(), start[name].delta(), atol=1e-3)
    manifest = context.store.manifest(*task.ref)
    assert manifest is not None
    assert f"merge/{merged.id}" in manifest.parents
    lines = (context.folder(task.ref) / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [0, 1, 2, 3]


def test_the_best_scale_of_those_rendered_is_published(
    context: StageContext, found: ArtifactRef, task: ExpertTask, report: Consolidation, model: ModelFamily
) -> None:
    trained, settings = load_lora(context.folder(task.ref)), context.run.merge
    judge = load_judge(settings.judge, context.run.load_taxonomy())
    prompts = choose_prompts(PROMPTS, CATEGORIES, settings.confirm)
    scores = [
        score_by_rendering(model, trained.scaled(scale), prompts, judge, settings.render, settings.confirm, task.seed)
        for scale in SCALES
    ]
    assert [report.confirmed[place] for place in range(len(SCALES))] == scores
    objectives = [score.objective for score in scores]
    assert report.scale == SCALES[objectives.index(min(objectives))]
    assert_same(load_lora(context.folder(found)), trained.scaled(report.scale))
    card = (context.folder(found) / "README.md").read_text()
    assert f"| {report.scale:g} (chosen) |" in card
    assert (context.folder(found) / "scales.png").stat().st_size > 1000


def test_what_is_published_is_not_made_again(
    context: StageContext,
    found: ArtifactRef,
    dataset: ArtifactRef,
    merged: ArtifactRef,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(consolidate.train, "train_all", lambda *_: pytest.fail("it is trained already"))
    monkeypatch.setattr(consolidate, "score_all", lambda *_: pytest.fail("it is rendered already"))
    assert consolidate.run(context, dataset, merged, CONFIG) == found


def test_other_scales_take_the_same_training(context: StageContext, task: ExpertTask, dataset: ArtifactRef) -> None:
    other = CONFIG.model_copy(update={"scales": (1.0,)})
    assert task.start is not None
    assert consolidate.plan(context, dataset, task.start, other).ref == task.ref
    longer = CONFIG.model_copy(update={"steps": 5})
    assert consolidate.plan(context, dataset, task.start, longer).ref != task.ref


def test_a_run_releases_what_is_consolidated_and_measures_the_merge_beside_it(
    context: StageContext, dataset: ArtifactRef, merged: ArtifactRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = ArtifactRef("consolidation", "consolidation-1")
    others = {"co-merge": merged, "average": ArtifactRef("merge", "merge-average")}
    monkeypatch.setattr("jobs.stages.merge.run", lambda *_: others)
    monkeypatch.setattr("jobs.stages.consolidate.run", lambda *given: made if given[2] == merged else None)
    assert Stages(context).merges(dataset, {}) == {"merged": made, **others}
    run = context.run.model_copy(update={"consolidate": None})
    without = StageContext(run, context.store, context.work, context.console)
    assert Stages(without).merges(dataset, {}) == {"merged": merged, "average": others["average"]}


def test_the_training_is_the_experts_with_what_is_its_own(context: StageContext, task: ExpertTask) -> None:
    expert, own = context.run.train.expert, task.config.expert
    assert task.name == CONSOLIDATED
    assert task.config.gate is None
    assert (own.warmup, own.clip_norm, own.precision) == (expert.warmup, expert.clip_norm, expert.precision)
    assert (own.steps, own.rows, own.learning_rate, own.objective) == (4, 4, 1e-2, CONFIG.objective)
    assert (own.lora.rank, own.lora.alpha) == (2, 2.0)
