"""Trains one LoRA expert per category on Ray Train and DeepSpeed, as many at once as the cluster holds."""

from __future__ import annotations

import json
import math
import pickle
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import ray
from rich.markup import escape
from rich.table import Table

from cluster.errors import ClusterError
from cluster.progress import StageProgress
from cluster.resources import describe_capacity, pool_size, require
from jobs.run.artifacts import ArtifactRef, StageContext, finished
from jobs.run.auto_placement import keep_workers
from jobs.run.placement import placed_unless_cheap
from jobs.run.places import train_place
from jobs.run.ray_data import first_cause
from jobs.train.config import CONSOLIDATED, TrainConfig
from jobs.train.fit import FitPlan, start_fit
from jobs.train.gate_moments import gather_missing
from jobs.train.task import ExpertTask, check_task, checkpointer, plan, read_summary, training_pairs
from safety.dataset.summary import DatasetSummary
from safety.experts.coverage import coverage
from safety.experts.curves import METRICS_FILE
from safety.experts.memory import StepMemory, needed_memory
from safety.families.family import families


def run(context: StageContext, dataset: ArtifactRef) -> dict[str, ArtifactRef]:
    """Train the experts that are not published yet and return all of them by name.

    Raises:
        ConfigError: A category is not in the taxonomy, or the model is on a GPU and the workers have none.
        EmptyDatasetError: A category has no training pair or prompt, or no benign row where the objective reads them.
        ImpossibleResources: The cluster can never run a worker.
        TrainingHealthError: A training diverged.
        ClusterError: The experts did not finish in time.
    """
    tasks = plan(context, dataset)
    keep_workers(context.run, context.store)
    train_missing(context, tasks)
    return {task.name: task.ref for task in tasks}


def train_missing(context: StageContext, tasks: Sequence[ExpertTask]) -> None:
    """Train the tasks that are not published yet; all share their settings. Raises as ``run`` does."""
    missing = [task for task in tasks if not finished(context, task.ref)]
    for task in tasks:
        if task not in missing:
            context.console.print(f"expert {escape(task.name)} {task.ref.id}: already published")
            # Left by a run that died between publishing and deleting them.
            checkpointer(context.store, task.ref).clear()
    if missing:
        config = missing[0].config
        require(config.resources(), "train.cpus_per_worker, train.gpus_per_worker")
        summary = read_summary(missing[0])
        for task in missing:
            check_task(task, summary)
            _warn_of_unseen(context, task, summary)
        if config.gate_on(families[context.model.family].model_class) is not None:
            # The same prompts for all of them; read here so that missing ones are reported before any worker starts.
            missing[0].moments.prompts()
            gather_missing(context, missing[0].moments, train_place(context.run), config.expert.threads)
        memory = step_memory(context, missing[0])
        train_all(context, [replace(task, memory=memory) for task in missing])
    context.console.print(curves_table(context, tasks))


def train_all(context: StageContext, tasks: Sequence[ExpertTask]) -> None:
    """Train the experts concurrently, as many at once as the cluster holds."""
    config = context.run.train
    running: dict[Any, tuple[str, ...]] = {}
    deadline = time.monotonic() + config.timeout_s
    # One more than the cluster holds, so that its controller is up when the next worker can start.
    places = concurrent_experts(config, len(tasks)) + 1
    waiting = [_fit_plan(group, config) for group in grouped(tasks, config, places - 1)]
    try:
        with StageProgress(context.console, "train", len(tasks), "experts") as progress:
            while waiting or running:
                while waiting and len(running) < places:
                    names, fit = waiting.pop(0)
                    running[start_fit(fit)] = names
                for names in _take_finished(running, deadline, config.timeout_s):
                    progress.advance(len(names), note=", ".join(names))
    finally:
        for reference in running:
            ray.cancel(reference, force=True)


def step_memory(context: StageContext, task: ExpertTask) -> StepMemory | None:
    """Return what a training step needs, found where a worker will run; None where it does not matter."""
    expert, render, place = task.config.expert, context.run.generate.render, train_place(context.run)
    if expert.micro_batch != "auto" and expert.checkpointing != "auto":
        return None
    shards = task.config.shards
    return placed_unless_cheap(place, needed_memory, task.model, expert, render.height, render.width, shards)


def concurrent_experts(config: TrainConfig, most: int) -> int:
    """Return the number of experts that the cluster, with all nodes it can add, holds at once, from 1 to ``most``."""
    workers = config.min_workers or config.workers
    needed = {name: workers * amount for name, amount in config.resources().items()}
    # Without a request nothing would limit them.
    return pool_size(most if needed else 1, needed).most


def _warn_of_unseen(context: StageContext, task: ExpertTask, summary: DatasetSummary) -> None:
    """Say so when a training leaves rows out."""
    expert = task.config.expert
    seen = coverage(expert, training_pairs(task, summary))
    if seen.share < 1:
        section = "consolidate" if task.name == CONSOLIDATED else "train.expert"
        context.console.print(
            f"[yellow]expert {escape(task.name)} is trained on {seen.text}[/]: raise distinct_batches or steps of "
            f"{section} to {math.ceil(seen.rows / expert.rows)} for all of them"
        )


def grouped(tasks: Sequence[ExpertTask], config: TrainConfig, places: int) -> list[list[ExpertTask]]:
    """Return the experts by the worker (or group of workers) that trains them, one after another over one base."""
    if config.experts_per_worker == "auto":
        # On one machine no worker beyond these will ever start. A cluster may grow, or lose a node with all it trains.
        size = math.ceil(len(tasks) / places) if len(ray.nodes()) == 1 else 1
    else:
        size = config.experts_per_worker
    count = math.ceil(len(tasks) / size)
    return [list(tasks[first::count]) for first in range(count)]


def _fit_plan(tasks: Sequence[ExpertTask], config: TrainConfig) -> tuple[tuple[str, ...], FitPlan]:
    return tuple(task.name for task in tasks), FitPlan(
        name=tasks[0].ref.id,
        tasks=pickle.dumps(list(tasks)),
        workers=config.workers if config.min_workers is None else (config.min_workers, config.workers),
        resources=config.resources(),
        max_failures=config.max_failures,
    )


def _take_finished(running: dict[Any, tuple[str, ...]], deadline: float, timeout_s: float) -> list[tuple[str, ...]]:
    """Wait for the next experts and return the names of those that are done; raise the first cause of a failure."""
    done, left = ray.wait(list(running), timeout=max(0.0, deadline - time.monotonic()))
    if not done:
        raise ClusterError(
            f"{', '.join(name for reference in left for name in running[reference])} not finished in {timeout_s:g} s; {describe_capacity()}",
            field="train.timeout_s",
            fix="allow more time, or give the cluster more resources; finished steps are kept",
        )
    # Out of ``running`` first, for its references are cancelled: Ray crashes when a task that has just ended is.
    names = [running.pop(reference) for reference in done]
    for reference in done:
        try:
            ray.get(reference)
        except Exception as error:
            raise first_cause(error) from error
    return names


def curves_table(context: StageContext, tasks: Sequence[ExpertTask]) -> Table:
    """Return each expert's last figures."""
    table = Table(
        "expert", "implicit accuracy", "on validation", "winner error / base", "loser error / base", title="Experts"
    )
    for task in tasks:
        lines = (context.folder(task.ref, METRICS_FILE) / METRICS_FILE).read_text(encoding="utf-8").splitlines()
        last = json.loads(lines[-1])
        table.add_row(
            escape(task.name),
            f"{last['implicit_accuracy']:.2f}",
            f"{last['validation_implicit_accuracy']:.2f}" if "validation_implicit_accuracy" in last else "-",
            f"{last['winner_error']:.4f} / {last['reference_winner_error']:.4f}",
            f"{last['loser_error']:.4f} / {last['reference_loser_error']:.4f}",
        )
    return table
