"""One worker of an expert's training: loads, restores and trains; the first worker reports and publishes too."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch.utils.tensorboard import SummaryWriter

from cluster.errors import CorruptArtifact
from jobs.run.artifacts import put_artifact
from jobs.run.metrics import IMPLICIT_ACCURACY, LOSS, PAIR_STEPS
from jobs.train.deepspeed_engine import DeepSpeedEngine
from jobs.train.task import ExpertTask, checkpointer, expert_gate, load_sets, pairs_of
from safety.experts.card import write_card
from safety.experts.checkpoint import Checkpoint, Checkpointer, Metrics
from safety.experts.curves import plot_curves, write_metrics
from safety.experts.expert import Expert
from safety.experts.training import ExpertTraining, TrainingResult, load_adapter
from safety.families import load_model
from safety.lora.files import save_lora

LOGGED = ("loss", "dpo_loss", "implicit_accuracy", "winner_error", "loser_error", "gradient_norm", "learning_rate")


def train_expert(task: ExpertTask) -> None:
    """Train one expert on this worker, together with the others of its group.

    Raises:
        TrainingHealthError: The training diverged.
    """
    torch.set_num_threads(task.config.expert.threads)
    model, pairs = load_model(task.model), pairs_of(task, load_sets([task]))
    gate = expert_gate(task, model)
    workers = torch.distributed.get_world_size()
    expert = Expert(model, pairs, task.config.expert, task.seed, workers, gate, task.start_weights())
    shapes = {name: parameter.shape for name, parameter in expert.parameters_by_name().items()}
    keeper = checkpointer(task.store, task.ref, shapes)
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
    """Return the first worker's newest checkpoint, on all workers.

    Each by itself could find another one, as when the newest becomes corrupt between their reads, and they would
    train on from different steps unnoticed.

    Raises:
        CorruptArtifact: This worker cannot read the first worker's checkpoint; a restart reads again.
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
                fix="run the job again: it goes on from the newest one that all can read",
            )
    return found


def _log(task: ExpertTask, board: SummaryWriter, step: int, metrics: Metrics) -> None:
    """Report a step to TensorBoard and Prometheus."""
    tags = {"run": task.run, "expert": task.name}
    PAIR_STEPS.add(task.config.expert.rows, **tags)
    LOSS.set(metrics["loss"], **tags)
    IMPLICIT_ACCURACY.set(metrics["implicit_accuracy"], **tags)
    for name, value in metrics.items():
        if name in LOGGED or name.startswith("validation_"):
            board.add_scalar(name, value, step)


def _publish(task: ExpertTask, expert: Expert, result: TrainingResult) -> None:
    """Put the adapter, its card and its curves into the store."""
    provenance = {"base model": task.model.path, "dataset": task.dataset.id, "seed": task.seed, "expert": task.ref.id}
    with TemporaryDirectory(prefix="safetydpo-expert-") as scratch:
        folder = Path(scratch)
        save_lora(expert.weights(), folder, metadata={"expert": task.name, "artifact": task.ref.id})
        write_card(folder, task.name, task.config.expert, result, provenance)
        write_metrics(result.history, folder)
        plot_curves(result.history, f"expert: {task.name}", folder)
        put_artifact(task.store, task.ref, folder, config=task.settings, seed=task.seed, parents=task.parents)
