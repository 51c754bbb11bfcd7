"""What one worker of an expert's training does: load, restore, train, and, on the first worker, publish."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from cluster.errors import CorruptArtifact
from cluster.store.artifacts import ArtifactStore
from jobs.run.artifacts import ArtifactRef, fetch_artifact, put_artifact
from jobs.run.metrics import IMPLICIT_ACCURACY, LOSS, PAIR_STEPS
from jobs.train.config import JOINT, TrainConfig
from jobs.train.deepspeed_engine import DeepSpeedEngine
from jobs.train.gate_moments import GateMomentsTask
from safety.dataset.layout import latents_file
from safety.dataset.preferences import PreferenceSet, combine, load_preferences
from safety.errors import ConfigError
from safety.experts.card import write_card
from safety.experts.checkpoint import Checkpoint, Checkpointer, Metrics
from safety.experts.curves import plot_curves, write_metrics
from safety.experts.expert import Expert, configured_objective, training_rows
from safety.experts.training import ExpertTraining, TrainingResult, load_adapter
from safety.families import ModelConfig, ModelFamily, load_model
from safety.lora.files import load_lora, save_lora
from safety.lora.weights import LoraWeights

logger = logging.getLogger(__name__)

LOGGED = ("loss", "dpo_loss", "implicit_accuracy", "winner_error", "loser_error", "gradient_norm", "learning_rate")


@dataclass(frozen=True)
class ExpertTask:
    """One expert to be trained; travels to its workers."""

    run: str
    """The run's name."""
    name: str
    categories: tuple[str, ...]
    """The categories whose pairs it learns: one, or all for "all-single" and "consolidated"."""
    texts: GateMomentsTask
    """The prompts of all categories that experts are trained for: its gate shares their directions out."""
    ref: ArtifactRef
    dataset: ArtifactRef
    config: TrainConfig
    model: ModelConfig
    seed: int
    store: ArtifactStore
    settings: dict[str, Any]
    logs: Path
    """Where TensorBoard's events go."""
    start: ArtifactRef | None = None
    """The artifact whose adapter training goes on from; None starts from no change."""

    @property
    def parents(self) -> list[ArtifactRef]:
        """Return what the expert is made from."""
        return [self.dataset] if self.start is None else [self.dataset, self.start]

    def start_weights(self) -> LoraWeights | None:
        """Return the adapter that training goes on from."""
        if self.start is None:
            return None
        return load_lora(fetch_artifact(self.store, self.texts.work, self.start))


class ObjectCheckpoints:
    """Checkpoints as objects in the store's work area (see ``safety.experts.checkpoint.CheckpointStore``)."""

    def __init__(self, store: ArtifactStore, ref: ArtifactRef) -> None:
        self.store = store
        self.place = f"work/{ref.kind}/{ref.id}/checkpoints/"

    def write(self, name: str, data: bytes) -> None:
        """Keep ``data`` under a name."""
        self.store.write(self.place + name, data)

    def read(self, name: str) -> bytes | None:
        """Return what is kept under the name, or None."""
        return self.store.read(self.place + name)

    def names(self) -> list[str]:
        """Return all names."""
        return [key.removeprefix(self.place) for key in self.store.keys(self.place)]

    def delete(self, name: str) -> None:
        """Remove what is kept under the name."""
        self.store.delete(self.place + name)


def checkpointer(store: ArtifactStore, ref: ArtifactRef) -> Checkpointer:
    """Return the keeper of an expert's checkpoints."""
    return Checkpointer(ObjectCheckpoints(store, ref), fingerprint=ref.id)


def load_sets(tasks: Sequence[ExpertTask]) -> dict[str, PreferenceSet]:
    """Return the pairs of every category that one of the tasks learns; all are of one dataset."""
    folder = tasks[0].texts.dataset_folder()
    categories = dict.fromkeys(category for task in tasks for category in task.categories)
    return {category: load_preferences(folder / latents_file(category)) for category in categories}


def pairs_of(task: ExpertTask, sets: Mapping[str, PreferenceSet]) -> PreferenceSet:
    """Return the pairs an expert learns."""
    own = [sets[category] for category in task.categories]
    return combine(own, task.name) if task.name in JOINT else own[0]


def expert_gate(task: ExpertTask, model: ModelFamily) -> Tensor | None:
    """Return the gate that an expert is trained behind, [K, K]; an expert of several categories has their sum."""
    if task.config.gate is None:
        return None
    gates = task.texts.read(model).gates(task.config.gate)
    return gates[[task.texts.categories.index(category) for category in task.categories]].sum(dim=0)


def check_task(task: ExpertTask, sets: Mapping[str, PreferenceSet]) -> None:
    """Find what can never be trained before any worker starts: a restart would only fail again.

    Raises:
        ConfigError: The model is on a GPU and the workers have none.
        EmptyDatasetError: There is no training pair, or no benign row where the objective reads them.
    """
    if task.model.device != "cpu" and not task.config.gpus_per_worker:
        raise ConfigError(
            f"the model is on {task.model.device!r} and a worker is given no GPU",
            field="train.gpus_per_worker",
            fix="set it to 1 or a share of 1, or set model.device to 'cpu'",
        )
    training_rows(pairs_of(task, sets), configured_objective(task.config.expert))


def train_expert(task: ExpertTask) -> None:
    """Train one expert on this worker, together with the others of its group.

    Raises:
        TrainingHealthError: The run blew up.
    """
    torch.set_num_threads(task.config.expert.threads)
    model, pairs = load_model(task.model), pairs_of(task, load_sets([task]))
    gate = expert_gate(task, model)
    workers = torch.distributed.get_world_size()
    expert = Expert(model, pairs, task.config.expert, task.seed, workers, gate, task.start_weights())
    keeper = checkpointer(task.store, task.ref)
    start = agreed_start(keeper, model.device)
    if start is not None:
        load_adapter(expert, start)
    engine = DeepSpeedEngine(expert, task.config)
    training = ExpertTraining(expert, engine, keeper, start)
    if engine.rank != 0:
        training.run()
        return
    with SummaryWriter(str(task.logs / task.name)) as board:
        result = training.run(lambda step, metrics: _log(task, board, step, metrics))
    _publish(task, expert, result)
    keeper.clear()


def agreed_start(keeper: Checkpointer, device: torch.device) -> Checkpoint | None:
    """Return the checkpoint that the first worker finds, on all workers.

    Each for itself could find another one, as when the newest is damaged while they look, and would go on from there
    without a word.

    Raises:
        CorruptArtifact: This worker cannot read the first one's; a restart looks again.
    """
    found = keeper.latest() if torch.distributed.get_rank() == 0 else None
    step = torch.tensor(-1 if found is None else found.step, device=device)
    torch.distributed.broadcast(step, src=0)
    if found is None and step >= 0:
        found = keeper.at(int(step))
        if found is None:
            raise CorruptArtifact(
                f"the checkpoint of step {int(step)} cannot be read by all workers",
                field=keeper.fingerprint,
                fix="run the job again: it looks for a good one",
            )
    return found


def _log(task: ExpertTask, board: SummaryWriter, step: int, metrics: Metrics) -> None:
    """Show a step in TensorBoard and Prometheus."""
    tags = {"run": task.run, "expert": task.name}
    PAIR_STEPS.add(task.config.expert.rows, **tags)
    LOSS.set(metrics["loss"], **tags)
    IMPLICIT_ACCURACY.set(metrics["implicit_accuracy"], **tags)
    for name, value in metrics.items():
        if name in LOGGED or name.startswith("validation_"):
            board.add_scalar(name, value, step)


def _publish(task: ExpertTask, expert: Expert, result: TrainingResult) -> None:
    provenance = {"base model": task.model.path, "dataset": task.dataset.id, "seed": task.seed, "expert": task.ref.id}
    with TemporaryDirectory(prefix="safetydpo-expert-") as scratch:
        folder = Path(scratch)
        save_lora(expert.weights(), folder, metadata={"expert": task.name, "artifact": task.ref.id})
        write_card(folder, task.name, task.config.expert, result, provenance)
        write_metrics(result.history, folder)
        plot_curves(result.history, f"expert: {task.name}", folder)
        put_artifact(task.store, task.ref, folder, config=task.settings, seed=task.seed, parents=task.parents)
