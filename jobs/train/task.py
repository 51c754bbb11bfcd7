"""An expert's training as a task: what it is made from, where its checkpoints lie, and which tasks a run has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import Tensor

from cluster.store.artifacts import ArtifactStore
from jobs.run.artifacts import EXPERTS_FOLDER, ArtifactRef, StageContext, artifact_ref, fetch_artifact
from jobs.run.ray_data import require_gpu
from jobs.run.work_area import WorkArea
from jobs.train.config import JOINT, TrainConfig
from jobs.train.gate_moments import GateMomentsTask, gate_moments_task
from safety.dataset.latents import load_preferences, training_files
from safety.dataset.layout import SUMMARY_FILE
from safety.dataset.preferences import PreferenceSet, combine
from safety.dataset.summary import BENIGN, DatasetSummary
from safety.errors import ArtifactFormatError, ConfigError
from safety.evaluation.plan import ALL_SINGLE
from safety.experts.checkpoint import Checkpointer
from safety.experts.expert import TRAIN, configured_objective, require_rows
from safety.experts.memory import StepMemory
from safety.families import ModelConfig
from safety.families.family import configured_family
from safety.lora.files import load_lora
from safety.lora.weights import LoraWeights

KIND = "expert"


@dataclass(frozen=True)
class ExpertTask:
    """The training of one expert; travels to its workers."""

    run: str
    """The run's name."""
    name: str
    categories: tuple[str, ...]
    """The categories whose pairs it learns: one, or all for "all-single" and "consolidated"."""
    moments: GateMomentsTask
    """The prompts of all categories that experts are trained for, among which gates divide the directions."""
    ref: ArtifactRef
    dataset: ArtifactRef
    config: TrainConfig
    model: ModelConfig
    seed: int
    store: ArtifactStore
    settings: dict[str, Any]
    logs: Path
    """The folder of TensorBoard's events."""
    start: ArtifactRef | None = None
    """The artifact whose adapter training goes on from; None starts from no change."""
    memory: StepMemory | None = None
    """What a step needs; None where it is known to be small."""

    @property
    def parents(self) -> list[ArtifactRef]:
        """Return the artifacts that the expert is made from."""
        return [self.dataset] if self.start is None else [self.dataset, self.start]

    def start_weights(self) -> LoraWeights | None:
        """Return the adapter that training goes on from."""
        if self.start is None:
            return None
        return load_lora(fetch_artifact(self.store, self.moments.work, self.start))


def plan(context: StageContext, dataset: ArtifactRef) -> list[ExpertTask]:
    """Return every expert of the run, with the name its artifact has or will have."""
    config, known = context.run.train, context.run.load_taxonomy().categories
    unknown = [name for name in config.categories or () if name not in known]
    if unknown:
        raise ConfigError(
            f"the taxonomy has no category {', '.join(unknown)}",
            field="train.categories",
            fix=f"use some of: {', '.join(known)}",
        )
    categories = tuple(name for name in known if name in (config.categories or known))
    named = {name: (name,) for name in categories} | ({ALL_SINGLE: categories} if config.all_single else {})
    moments = gate_moments_task(context, dataset, categories)
    return [_task(context, moments, name, learned) for name, learned in named.items()]


def _task(context: StageContext, moments: GateMomentsTask, name: str, categories: tuple[str, ...]) -> ExpertTask:
    """Return an expert's task; ``moments`` are of all categories that are trained, whose experts will be added up."""
    run = context.run
    settings: dict[str, Any] = {"train": run.train.recipe(name), "model": context.model.model_dump(mode="json")}
    if name == ALL_SINGLE:
        settings["categories"] = list(categories)
    if run.train.gate is not None:
        settings["gated together"] = list(moments.categories)
    return ExpertTask(
        run=run.run.name,
        name=name,
        categories=categories,
        moments=moments,
        ref=artifact_ref(context, KIND, settings, [moments.dataset]),
        dataset=moments.dataset,
        config=run.train,
        model=run.model,
        seed=run.run.seed,
        store=context.store,
        settings=settings,
        logs=(run.run.output / EXPERTS_FOLDER).resolve(),
    )


def checkpointer(
    store: ArtifactStore, ref: ArtifactRef, shapes: Mapping[str, Sequence[int]] | None = None
) -> Checkpointer:
    """Return the checkpoints of an unfinished expert, in its work area; those of parameters of other shapes are skipped."""
    return Checkpointer(WorkArea(store, ref), fingerprint=ref.id, shapes=shapes)


def load_sets(tasks: Sequence[ExpertTask]) -> dict[str, PreferenceSet]:
    """Return the pairs of every category that one of the tasks learns; all are of one dataset.

    Their latents, those of benign rows and nothing else are fetched, once for all processes of a machine.
    """
    categories = tuple(dict.fromkeys(category for task in tasks for category in task.categories))
    folder = tasks[0].moments.dataset_folder(*training_files(categories))
    return {category: load_preferences(folder, category) for category in categories}


def pairs_of(task: ExpertTask, sets: Mapping[str, PreferenceSet]) -> PreferenceSet:
    """Return an expert's training pairs, those of several categories combined."""
    own = [sets[category] for category in task.categories]
    return combine(own, task.name) if task.name in JOINT else own[0]


def expert_gate(task: ExpertTask) -> Tensor | None:
    """Return the gate that an expert is trained behind, [K, K], if any; an expert of several categories has their sum."""
    config = task.config.gate_on(configured_family(task.model).model_class)
    if config is None:
        return None
    own = [task.moments.categories.index(category) for category in task.categories]
    return task.moments.read().gates(config, own, task.model.device).sum(dim=0)


def check_task(task: ExpertTask, summary: DatasetSummary) -> None:
    """Refuse a task that can never be trained before any worker starts: a restart would only fail again.

    Raises:
        ConfigError: The model is on a GPU and the workers have none.
        EmptyDatasetError: There is no training pair, or no benign row where the objective reads them.
    """
    require_gpu(task.model.device, task.config.gpus_per_worker, "train.gpus_per_worker", "a worker")
    require_rows(
        task.name,
        pairs=training_pairs(task, summary),
        benign=_kept_for_training(summary).get(BENIGN, 0),
        objective=configured_objective(task.config.expert),
    )


def training_pairs(task: ExpertTask, summary: DatasetSummary) -> int:
    """Return the number of pairs that an expert is trained on."""
    kept = _kept_for_training(summary)
    return sum(kept.get(category, 0) for category in task.categories)


def _kept_for_training(summary: DatasetSummary) -> dict[str, int]:
    return {count.category: count.kept for count in summary.counts if count.split == TRAIN}


def read_summary(task: ExpertTask) -> DatasetSummary:
    """Return the summary of a task's dataset; raise ArtifactFormatError when it holds none."""
    path = task.moments.dataset_folder(SUMMARY_FILE) / SUMMARY_FILE
    try:
        return DatasetSummary.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise ArtifactFormatError(
            f"the dataset has no readable {SUMMARY_FILE}: {error}", field="dataset", fix="run jobs.generate again"
        ) from error
