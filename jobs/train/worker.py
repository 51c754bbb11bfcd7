"""One worker of experts' trainings: loads the denoiser, restores and trains; the first one reports and publishes too."""

from __future__ import annotations

import gc
import os
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch.utils.tensorboard import SummaryWriter

from cluster.errors import CorruptArtifact
from jobs.run.artifacts import put_artifact
from jobs.run.metrics import IMPLICIT_ACCURACY, LOSS, PAIR_STEPS
from jobs.train.deepspeed_engine import DeepSpeedEngine
from jobs.train.task import ExpertTask, checkpointer, expert_gate, load_sets, pairs_of
from safety.errors import ConfigError
from safety.experts.card import write_card
from safety.experts.checkpoint import Checkpoint, Checkpointer, Metrics
from safety.experts.coverage import Coverage, coverage
from safety.experts.curves import plot_curves, write_metrics
from safety.experts.expert import Expert, training_rows
from safety.experts.memory import choose_plan, free_bytes, latents_of, return_memory_at_once
from safety.experts.sharding import load_sharded
from safety.experts.training import ExpertTraining, TrainingResult, load_adapter
from safety.families import ModelFamily, load_model
from safety.families.family import configured_family
from safety.lora.attach import detach
from safety.lora.files import save_lora

LOGGED = ("loss", "dpo_loss", "implicit_accuracy", "winner_error", "loser_error", "gradient_norm", "learning_rate")


def train_experts(tasks: Sequence[ExpertTask]) -> None:
    """Train experts in turn on this worker over one loaded base, together with the others of its group.

    Each is what it would be if it were trained alone: it starts from the base with no adapter on it. What is published
    is skipped, so that a restart goes on with the expert that was cut off.

    Raises:
        TrainingHealthError: A training diverged.
        ConfigError: A step does not fit into the memory.
    """
    # Memory that one expert's passes leave is used by the next one's, whatever their sizes.
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    torch.set_num_threads(tasks[0].config.expert.threads)
    if tasks[0].memory is not None and tasks[0].model.device == "cpu":
        return_memory_at_once()
    room = _room(tasks[0])
    model = _load_base(tasks[0])
    for task in tasks:
        if len(tasks) > 1 and _is_published(task, model.device):
            continue
        try:
            train_expert(task, model, room)
        except torch.OutOfMemoryError as error:
            raise _too_large(error) from error
        detach(model)
        # The engine and the expert refer to each other and to all that is on the card.
        gc.collect()


def train_expert(task: ExpertTask, model: ModelFamily, room: int) -> None:
    """Train one expert over a loaded base; ``room`` are the bytes that were free before the base was loaded."""
    pairs, gate, config = pairs_of(task, load_sets([task])), expert_gate(task), task.config.expert
    workers = torch.distributed.get_world_size()
    plan = choose_plan(task.memory, config, latents_of(config, workers), room)
    expert = Expert(model, pairs, config, task.seed, workers, gate, task.start_weights(), plan)
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
    _publish(task, expert, result, coverage(config, len(training_rows(pairs, expert.objective))))
    keeper.clear()


def _load_base(task: ExpertTask) -> ModelFamily:
    """Return the denoiser, divided among the workers where it is asked for and there are several."""
    if task.config.shard_base and torch.distributed.get_world_size() > 1:
        return load_sharded(task.model)
    return load_model(task.model, "denoiser")


def _room(task: ExpertTask) -> int:
    """Return the bytes that this worker may take: what is free, up to its share of the device."""
    return free_bytes(torch.device(task.model.device), task.config.device_share(task.model.device))


def _is_published(task: ExpertTask, device: torch.device) -> bool:
    """Return whether an expert is in the store, as the first worker sees it."""
    found = torch.distributed.get_rank() == 0 and task.store.manifest(task.ref.kind, task.ref.id) is not None
    flag = torch.tensor(int(found), device=device)
    torch.distributed.broadcast(flag, src=0)
    return bool(flag)


def _too_large(error: torch.OutOfMemoryError) -> ConfigError:
    return ConfigError(
        f"a training step does not fit into the memory ({' '.join(str(error).split())[:200]})",
        field="train.expert.micro_batch",
        fix="set micro_batch to a smaller number, checkpointing to 'on', or model.quantize to 'int8' or 'nf4'",
    )


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


def _publish(task: ExpertTask, expert: Expert, result: TrainingResult, seen: Coverage) -> None:
    """Put the adapter, its card and its curves into the store."""
    provenance = {"base model": task.model.path, "dataset": task.dataset.id, "seed": task.seed, "expert": task.ref.id}
    with TemporaryDirectory(prefix="safetydpo-expert-") as scratch:
        folder = Path(scratch)
        metadata = {"expert": task.name, "artifact": task.ref.id}
        save_lora(expert.weights(), folder, metadata=metadata, component=configured_family(task.model).component)
        write_card(folder, task.name, task.config.expert, result, provenance, seen)
        write_metrics(result.history, folder)
        plot_curves(result.history, f"expert: {task.name}", folder)
        put_artifact(task.store, task.ref, folder, config=task.settings, seed=task.seed, parents=task.parents)
