"""The training job through real Ray Train, DeepSpeed and a real S3 server, on a tiny model."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from rich.console import Console

from cluster.errors import ClusterError, ImpossibleResources
from cluster.session import Session
from jobs.run.artifacts import EXPERTS_FOLDER, ArtifactRef, StageContext
from jobs.run.config import RunConfig
from jobs.run.metrics import LOSS, PAIR_STEPS
from jobs.train import stage as train
from jobs.train.config import TrainConfig
from jobs.train.gate_moments import gate_moments_task
from jobs.train.task import check_task, checkpointer, expert_gate, load_sets, pairs_of, plan, read_summary
from safety.dataset.preferences import PreferenceSet
from safety.errors import ConfigError, EmptyDatasetError, TrainingHealthError
from safety.evaluation.plan import ALL_SINGLE
from safety.experts.engine import TorchEngine
from safety.experts.expert import Expert
from safety.experts.training import ExpertTraining
from safety.families import ModelConfig, ModelFamily, load_model
from safety.gates import PromptMoments, gather_prompt_moments
from safety.lora.files import LORA_FILE, load_lora
from safety.lora.fuse import fused
from safety.prompts.files import PROMPTS_FILE, write_prompt_file
from tests.support.no_model_here import no_model_here
from tests.support.prometheus import exported, wait_for
from tests.support.small_sets import write_sets
from tests.support.small_world import GATE, RECIPE, knife_prompts

CATEGORIES = ("violence", "hate")
PROMPTS = knife_prompts(CATEGORIES, ("train", "validation"), ("train", "text_only"))
EXPERT = {
    **RECIPE,
    "steps": 6,
    "rows": 4,
    "benign_rows": 2,
    "warmup": 1,
    "validation_rows": 2,
    "checkpoint_every": 2,
    "lora": {"rank": 2, "alpha": 2.0, "targets": None},
}
FILES = {LORA_FILE, "README.md", "curves.png", "metrics.jsonl"}

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]


def preferences(model: ModelFamily, category: str) -> PreferenceSet:
    draw = torch.Generator().manual_seed(len(category))
    return PreferenceSet(
        category=category,
        ids=tuple(f"{category}-{i}" for i in range(5)),
        splits=("train",) * 4 + ("validation",),
        winner=torch.randn(5, 4, 4, 4, generator=draw),
        loser=torch.randn(5, 4, 4, 4, generator=draw),
        unsafe=model.encode_text([f"a kitchen knife {i}" for i in range(5)]),
        safe=model.encode_text([f"a house {i}" for i in range(5)]),
        benign_ids=("benign-0", "benign-1"),
        benign_splits=("train",) * 2,
        benign=torch.randn(2, 4, 4, 4, generator=draw),
        benign_prompts=model.encode_text(["a blue house", "a house"]),
        empty=model.encode_text([""]),
    )


@pytest.fixture(scope="module")
def model(tiny_model_dir: Path) -> ModelFamily:
    return load_model(ModelConfig(path=str(tiny_model_dir)))


@pytest.fixture(scope="module")
def context(session: Session, tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> StageContext:
    folder = tmp_path_factory.mktemp("train")
    run = RunConfig.model_validate(
        {
            "run": {"name": "test-train", "seed": 3, "output": folder / "out"},
            "model": {"path": str(tiny_model_dir)},
            "train": {
                "expert": EXPERT,
                "gate": GATE,
                "categories": CATEGORIES,
                "cpus_per_worker": 0.5,
                "timeout_s": 560,
            },
        }
    )
    return StageContext(run, session.store, folder / "work", Console(file=io.StringIO(), width=160))


def changed(context: StageContext, *, expert: dict[str, Any] | None = None, **settings: Any) -> StageContext:
    """Return the context with other settings of the training."""
    document = context.run.train.model_dump(mode="json") | settings
    document["expert"] |= expert or {}
    run = context.run.model_copy(update={"train": TrainConfig.model_validate(document)})
    return StageContext(run, context.store, context.work, context.console)


def put_dataset(context: StageContext, sets: dict[str, PreferenceSet], name: str, folder: Path) -> ArtifactRef:
    write_sets(folder, *sets.values())
    write_prompt_file(PROMPTS, folder / PROMPTS_FILE)
    context.store.put("dataset", name, folder, config={}, seed=0)
    return ArtifactRef("dataset", name)


@pytest.fixture(scope="module")
def dataset(context: StageContext, model: ModelFamily, tmp_path_factory: pytest.TempPathFactory) -> ArtifactRef:
    sets = {category: preferences(model, category) for category in CATEGORIES}
    return put_dataset(context, sets, "dataset-pico", tmp_path_factory.mktemp("dataset"))


@pytest.fixture(scope="module")
def experts(context: StageContext, dataset: ArtifactRef) -> dict[str, ArtifactRef]:
    with no_model_here():
        return train.run(context, dataset)


def train_here(context: StageContext, dataset: ArtifactRef, name: str, stop_after: int | None = None) -> Expert:
    """Train an expert in this process, by plain torch; ``stop_after`` leaves its checkpoints in the store."""
    [task] = [task for task in plan(context, dataset) if task.name == name]
    torch.set_num_threads(1)
    model = load_model(task.model)
    gate = expert_gate(task)
    expert = Expert(model, pairs_of(task, load_sets([task])), task.config.expert, task.seed, 1, gate)
    keeper = checkpointer(task.store, task.ref) if stop_after else None

    def observe(step: int, _: dict[str, float]) -> None:
        if step + 1 == stop_after:
            raise KeyboardInterrupt

    training = ExpertTraining(expert, TorchEngine(expert), keeper)
    if stop_after is None:
        training.run()
    else:
        with pytest.raises(KeyboardInterrupt):
            training.run(observe)
    return expert


def test_prometheus_sees_the_steps_of_every_expert(context: StageContext, experts: dict[str, ArtifactRef]) -> None:
    # First: a worker's last loss is exported for twenty seconds after its end.
    losses = exported(LOSS.exported, ("expert",), "test-train")
    assert losses
    for (name,), loss in losses.items():
        lines = (context.folder(experts[name]) / "metrics.jsonl").read_text().splitlines()
        assert loss == pytest.approx(json.loads(lines[-1])["loss"], rel=1e-6)
    steps = {(name,): float(EXPERT["steps"] * EXPERT["rows"]) for name in experts}  # type: ignore[operator]
    assert wait_for(PAIR_STEPS.exported, ("expert",), "test-train", lambda found: found == steps) == steps


def test_every_category_and_all_together_give_an_expert(
    context: StageContext, experts: dict[str, ArtifactRef], dataset: ArtifactRef
) -> None:
    assert list(experts) == [*sorted(CATEGORIES, key=context.run.load_taxonomy().categories.index), ALL_SINGLE]
    assert len({ref.id for ref in experts.values()}) == 3
    for name, ref in experts.items():
        manifest = context.store.verify(ref.kind, ref.id)
        assert set(manifest.files) == FILES
        assert manifest.parents == (f"dataset/{dataset.id}",)
        assert manifest.config["train"]["name"] == name
        assert len((context.folder(ref) / "metrics.jsonl").read_text().splitlines()) == EXPERT["steps"]
        assert list((context.run.run.output / "tensorboard" / "experts" / name).iterdir())
    assert not list(context.store.keys("work/expert/"))


@pytest.mark.parametrize("name", ["hate", ALL_SINGLE])
def test_the_adapter_is_that_of_plain_torch_without_ray(
    context: StageContext, experts: dict[str, ArtifactRef], dataset: ArtifactRef, name: str
) -> None:
    expected = train_here(context, dataset, name).weights()
    found = load_lora(context.folder(experts[name]))
    assert set(found) == set(expected)
    for layer, value in expected.items():
        assert torch.equal(found[layer].down, value.down)
        assert torch.equal(found[layer].up, value.up)


def test_a_stock_pipeline_loads_the_expert(
    context: StageContext, experts: dict[str, ArtifactRef], model: ModelFamily, tiny_model_dir: Path
) -> None:
    folder = context.folder(experts["hate"])
    pipe = StableDiffusionPipeline.from_pretrained(tiny_model_dir, safety_checker=None)
    pipe.load_lora_weights(folder)
    noise, steps = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([10, 700])
    states = model.encode_text(["a kitchen knife", "a house"])
    with torch.no_grad():
        stock = pipe.unet(noise, steps, encoder_hidden_states=states["states"]).sample
        with fused(model, load_lora(folder)):
            ours = model.predict(noise, steps, states)
        base = model.predict(noise, steps, states)
    torch.testing.assert_close(ours, stock, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(ours, base, rtol=1e-4, atol=1e-5)


def test_a_second_run_trains_nothing(
    context: StageContext, experts: dict[str, ArtifactRef], dataset: ArtifactRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "train_all", lambda *_: pytest.fail("it trains what is published"))
    assert train.run(context, dataset) == experts


def test_a_cut_off_training_goes_on_on_several_workers(context: StageContext, dataset: ArtifactRef) -> None:
    # ZeRO over two workers, from the checkpoint that an earlier run left after step 4; the last one is corrupt.
    precise = {"precision": "fp32", "steps": 7}
    two = changed(context, expert=precise, workers=2, deepspeed={"stage": 1}, categories=["hate"], all_single=False)
    [task] = plan(two, dataset)
    model = load_model(task.model)
    task.moments.gather(model)
    pairs, gate = pairs_of(task, load_sets([task])), expert_gate(task)
    one = Expert(model, pairs, task.config.expert, task.seed, 1, gate)
    keeper = checkpointer(task.store, task.ref)
    ExpertTraining(one, TorchEngine(one), keeper).run()
    newest = max(task.store.keys("work/expert/"))
    task.store.write(newest, (task.store.read(newest) or b"")[:-1])
    found = load_lora(two.folder(train.run(two, dataset)["hate"]))
    for name, layer in one.weights().items():
        torch.testing.assert_close(found[name].delta(), layer.delta(), rtol=2e-2, atol=1e-5)


def test_resources_that_are_not_there_are_reported_at_once(context: StageContext, dataset: ArtifactRef) -> None:
    with pytest.raises(ImpossibleResources, match="train.gpus_per_worker"):
        train.run(changed(context, expert={"learning_rate": 2e-4}, gpus_per_worker=1.0), dataset)
    with pytest.raises(ImpossibleResources, match="64 CPU"):
        train.run(changed(context, expert={"learning_rate": 2e-4}, cpus_per_worker=64.0), dataset)


def test_an_unknown_category_names_the_known_ones(context: StageContext, dataset: ArtifactRef) -> None:
    with pytest.raises(ConfigError, match=r"no category sloth.*hate"):
        train.run(changed(context, categories=["sloth"]), dataset)


def test_an_error_that_would_come_again_is_reported_after_one_try(
    context: StageContext, model: ModelFamily, tmp_path: Path
) -> None:
    found = preferences(model, "hate")
    found.winner.fill_(1e30)
    dataset = put_dataset(context, {"hate": found}, "dataset-blows-up", tmp_path)
    output = context.run.run.model_copy(update={"output": tmp_path / "out"})
    broken = changed(context, categories=["hate"], all_single=False, max_failures=5)
    broken = replace(broken, run=broken.run.model_copy(update={"run": output}))
    with pytest.raises(TrainingHealthError, match="is not finite at step 0"):
        train.run(broken, dataset)
    tries = list((tmp_path / "out" / EXPERTS_FOLDER / "hate").iterdir())
    assert len(tries) == 1, "each try begins a file of TensorBoard's"


@pytest.fixture
def no_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where a worker would be started."""
    monkeypatch.setattr(train, "train_all", lambda *_: pytest.fail("it starts workers"))


def test_a_dataset_without_the_category_is_reported_before_any_worker(
    context: StageContext, model: ModelFamily, tmp_path: Path, no_fit: None
) -> None:
    dataset = put_dataset(context, {"hate": preferences(model, "hate")}, "dataset-of-hate", tmp_path)
    with pytest.raises(EmptyDatasetError, match=r"'violence' has no pair"):
        train.run(context, dataset)


@pytest.mark.parametrize(
    ("emptied", "message"),
    [
        ({"splits": ("validation",) * 5}, "no pair in the split 'train'"),
        ({"benign_splits": ("validation",) * 2}, "no benign row in the split 'train'"),
    ],
    ids=["pairs", "benign rows"],
)
def test_a_category_without_training_rows_is_reported_before_any_worker(
    context: StageContext, model: ModelFamily, tmp_path: Path, no_fit: None, emptied: dict[str, Any], message: str
) -> None:
    found = replace(preferences(model, "hate"), **emptied)
    dataset = put_dataset(context, {"hate": found}, f"dataset-without-{next(iter(emptied))}", tmp_path)
    with pytest.raises(EmptyDatasetError, match=message):
        train.run(changed(context, categories=["hate"], all_single=False), dataset)


def test_a_category_without_training_prompts_is_reported_before_any_worker(
    context: StageContext, model: ModelFamily, tmp_path: Path, no_fit: None
) -> None:
    dataset = put_dataset(context, {"self-harm": preferences(model, "self-harm")}, "dataset-without-prompts", tmp_path)
    with pytest.raises(EmptyDatasetError, match="no training prompt of 'self-harm'"):
        train.run(changed(context, categories=["self-harm"], all_single=False), dataset)


def test_the_gates_of_all_categories_add_up_to_that_of_the_expert_of_all(
    context: StageContext, dataset: ArtifactRef, model: ModelFamily
) -> None:
    gates = {task.name: expert_gate(task) for task in plan(context, dataset)}
    together = gates.pop(ALL_SINGLE)
    assert together is not None
    torch.testing.assert_close(sum(gates.values()), together)
    ungated = changed(context, gate=None)
    assert [expert_gate(task) for task in plan(ungated, dataset)] == [None] * 3
    names = {task.ref.id for context in (context, ungated) for task in plan(context, dataset)}
    assert len(names) == 6


def test_moments_of_prompts_are_gathered_once_and_read_by_all(
    context: StageContext,
    dataset: ArtifactRef,
    experts: dict[str, ArtifactRef],
    model: ModelFamily,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    [moments] = {task.moments.ref: task.moments for task in plan(context, dataset)}.values()
    # Published by the training: no worker gathers them again.
    assert context.store.manifest(*moments.ref) is not None
    expected = gather_prompt_moments(model, moments.prompts())
    monkeypatch.setattr("jobs.train.gate_moments.gather_prompt_moments", lambda *_: pytest.fail("gathered again"))
    moments.gather(model)
    torch.testing.assert_close(moments.read(), expected)


def test_moments_that_are_gathered_too_late_give_way_to_the_published_ones(
    context: StageContext, dataset: ArtifactRef, model: ModelFamily, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = gate_moments_task(context, dataset, ("hate",))
    late.gather(model)
    first = late.read()
    monkeypatch.setattr(type(context.store), "manifest", _blind_once(type(context.store).manifest))
    monkeypatch.setattr(
        "jobs.train.gate_moments.gather_prompt_moments", lambda *_: PromptMoments(first.unsafe + 1.0, first.preserved)
    )
    late.gather(model)
    assert torch.equal(late.read().unsafe, first.unsafe)


def _blind_once(manifest: Any) -> Any:
    """Return ``ArtifactStore.manifest`` that finds nothing when it is first asked."""
    asked: list[str] = []

    def see(store: Any, kind: str, artifact_id: str) -> Any:
        asked.append(artifact_id)
        return None if len(asked) == 1 else manifest(store, kind, artifact_id)

    return see


def test_a_model_on_a_gpu_needs_workers_with_one(context: StageContext, dataset: ArtifactRef, no_fit: None) -> None:
    [task, *_] = plan(context, dataset)
    summary = read_summary(task)
    on_gpu = replace(task, model=task.model.model_copy(update={"device": "cuda"}))
    with pytest.raises(ConfigError, match=r"train\.gpus_per_worker"):
        check_task(on_gpu, summary)


def test_a_time_limit_is_reported_with_its_field(context: StageContext, dataset: ArtifactRef) -> None:
    slow = changed(context, categories=["hate"], all_single=False, timeout_s=0.5, expert={"steps": 5000})
    with pytest.raises(ClusterError, match=r"train\.timeout_s"):
        train.run(slow, dataset)
