"""A worker that trains experts in turn over one base: each as if alone, and after a kill from where it was."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

from cluster.store.artifacts import ArtifactStore
from cluster.store.config import StoreConfig
from jobs.run.artifacts import ArtifactRef, StageContext
from jobs.run.config import RunConfig
from jobs.train import stage, worker
from jobs.train.stage import grouped
from jobs.train.task import ExpertTask, plan
from jobs.train.worker import train_experts
from safety.dataset.preferences import PreferenceSet
from safety.dataset.summary import DatasetSummary
from safety.experts.training import ExpertTraining
from safety.families import ModelConfig, ModelFamily, load_model
from safety.lora.attach import attach, detach
from safety.lora.config import LoraConfig
from safety.lora.files import LORA_FILE
from safety.prompts.files import PROMPTS_FILE, write_prompt_file
from tests.support.small_sets import write_sets
from tests.support.small_world import GATE, RECIPE, knife_prompts

pytestmark = pytest.mark.usefixtures("process_group")

CATEGORIES = ("violence", "hate")
EXPERT = {
    **RECIPE,
    "steps": 4,
    "rows": 4,
    "benign_rows": 2,
    "warmup": 1,
    "validation_rows": 2,
    "checkpoint_every": 2,
    "precision": "fp32",
    "lora": {"rank": 2, "alpha": 2.0, "targets": None},
}


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


def make_tasks(tiny_model_dir: Path, folder: Path) -> list[ExpertTask]:
    """Return the tasks of three experts of a run with a store of its own, whose dataset and prompt moments are there."""
    run = RunConfig.model_validate(
        {
            "run": {"name": "test-worker", "seed": 3, "output": folder / "out"},
            "model": {"path": str(tiny_model_dir)},
            "train": {"expert": EXPERT, "gate": GATE, "categories": CATEGORIES},
        }
    )
    store = ArtifactStore(StoreConfig(data_dir=folder / "store"))
    context = StageContext(run, store, folder / "work", Console(file=io.StringIO()))
    text = load_model(ModelConfig(path=str(tiny_model_dir)), "text")
    dataset = folder / "dataset"
    dataset.mkdir(parents=True)
    write_sets(dataset, *(preferences(text, category) for category in CATEGORIES))
    write_prompt_file(
        knife_prompts(CATEGORIES, ("train", "validation"), ("train", "text_only")), dataset / PROMPTS_FILE
    )
    store.put("dataset", "dataset-pico", dataset, config={}, seed=0)
    tasks = plan(context, ArtifactRef("dataset", "dataset-pico"))
    tasks[0].moments.gather(text)
    return tasks


def adapters(tasks: list[ExpertTask]) -> dict[str, str]:
    return {task.name: task.store.verify(*task.ref).files[LORA_FILE].sha256 for task in tasks}


@pytest.fixture(scope="module")
def alone(process_group: None, tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the hash of each expert's adapter, trained by a process that trains nothing else."""
    tasks = make_tasks(tiny_model_dir, tmp_path_factory.mktemp("alone"))
    for task in tasks:
        train_experts([task])
    return adapters(tasks)


def test_experts_in_turn_are_the_experts_alone(
    tiny_model_dir: Path, tmp_path: Path, alone: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = make_tasks(tiny_model_dir, tmp_path)
    asked: list[str] = []
    monkeypatch.setattr(worker, "load_model", lambda config, parts: asked.append(parts) or load_model(config, parts))
    train_experts(tasks)
    assert asked == ["denoiser"], "one base is loaded, without its VAE and its text encoder"
    assert len(set(alone.values())) == 3
    assert adapters(tasks) == alone


def test_a_killed_worker_goes_on_with_the_expert_that_it_was_at(
    tiny_model_dir: Path, tmp_path: Path, alone: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = make_tasks(tiny_model_dir, tmp_path)
    run, steps = ExpertTraining.run, []

    def cut(training: ExpertTraining, observe: Any = None) -> Any:
        def seen(step: int, metrics: dict[str, float]) -> None:
            steps.append((training.expert.category, step))
            if len(steps) == 4 + 3:
                raise KeyboardInterrupt

        return run(training, seen)

    monkeypatch.setattr(ExpertTraining, "run", cut)
    with pytest.raises(KeyboardInterrupt):
        train_experts(tasks)
    assert tasks[0].store.manifest(*tasks[0].ref) is not None
    steps += [("", 0)] * 10
    train_experts(tasks)
    again = steps[17:]
    # The second expert from its checkpoint after step 2, then the third; the first is done.
    names = [task.name for task in tasks]
    assert again == [(names[1], 2), (names[1], 3), *((names[2], step) for step in range(4))]
    assert adapters(tasks) == alone


def test_a_detached_expert_leaves_the_base(tiny_model_dir: Path) -> None:
    model = load_model(ModelConfig(path=str(tiny_model_dir)), "denoiser")
    before = {name: (value.shape, value.data_ptr()) for name, value in model.denoiser.named_parameters()}
    attach(model, LoraConfig(rank=2, targets=None), seed=0)
    detach(model)
    assert {name: (value.shape, value.data_ptr()) for name, value in model.denoiser.named_parameters()} == before
    attach(model, LoraConfig(rank=3, targets=None), seed=1)


def test_experts_are_shared_out_by_the_setting(tiny_model_dir: Path, tmp_path: Path, monkeypatch: Any) -> None:
    tasks = make_tasks(tiny_model_dir, tmp_path)
    config = tasks[0].config
    for number, sizes in ((1, [1, 1, 1]), (2, [2, 1]), (5, [3])):
        set_to = config.model_copy(update={"experts_per_worker": number})
        assert [len(group) for group in grouped(tasks, set_to, places=2)] == sizes
    monkeypatch.setattr("jobs.train.stage.ray.nodes", lambda: [{}])
    assert [[task.name for task in group] for group in grouped(tasks, config, places=2)] == [
        [tasks[0].name, tasks[2].name],
        [tasks[1].name],
    ]
    monkeypatch.setattr("jobs.train.stage.ray.nodes", lambda: [{}, {}])
    assert len(grouped(tasks, config, places=2)) == 3


def test_rows_that_are_left_out_are_named_with_their_setting(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [task, *_] = make_tasks(tiny_model_dir, tmp_path)
    monkeypatch.setattr(stage, "training_pairs", lambda *_: 100)
    for name, section in (("violence", "train.expert"), ("consolidated", "consolidate")):
        console = Console(record=True, width=300, file=io.StringIO())
        context: Any = SimpleNamespace(console=console)
        stage._warn_of_unseen(context, replace(task, name=name), summary=DatasetSummary.model_construct())
        said = console.export_text()
        assert f"expert {name} is trained on 16 of 200 preference rows (8%)" in said
        assert f"of {section} to 50 for all" in said
