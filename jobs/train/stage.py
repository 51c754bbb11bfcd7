"""Trains one LoRA expert per category on Ray Train and DeepSpeed, as many at once as the cluster holds."""

from __future__ import annotations

import json
import pickle
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
from rich.markup import escape
from rich.table import Table

from cluster.errors import ClusterError
from cluster.progress import StageProgress
from cluster.resources import describe_capacity, require
from jobs.run.artifacts import ArtifactRef, StageContext, finished
from jobs.run.ray_data import first_cause, fitting_actors
from jobs.train.config import TrainConfig
from jobs.train.fit import FitPlan, start_fit
from jobs.train.task import ExpertTask, check_task, checkpointer, load_sets, plan
from safety.experts.curves import METRICS_FILE


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
    train_missing(context, tasks)
    return {task.name: task.ref for task in tasks}


def train_missing(context: StageContext, tasks: Sequence[ExpertTask]) -> None:
    """Train the tasks that are not published yet; all share their settings. Raises as ``run`` does."""
    missing = [task for task in tasks if not finished(context, task.ref)]
    for task in tasks:
        if task not in missing:
            context.console.print(f"expert {escape(task.name)} {task.ref.id}: already published and verified")
            # Left by a run that died between publishing and deleting them.
            checkpointer(context.store, task.ref).clear()
    if missing:
        config = missing[0].config
        require(config.resources(), "train.cpus_per_worker, train.gpus_per_worker")
        sets = load_sets(missing)
        for task in missing:
            check_task(task, sets)
        if config.gate is not None:
            # The same prompts for all of them; read here so that missing ones are reported before any worker starts.
            missing[0].moments.prompts()
            # A corrupt artifact is discarded before workers read it.
            finished(context, missing[0].moments.ref)
        train_all(context, missing)
    context.console.print(curves_table(context, tasks))


def train_all(context: StageContext, tasks: Sequence[ExpertTask]) -> None:
    """Train the experts concurrently, as many at once as the cluster holds."""
    config = context.run.train
    storage = (context.work / "train").resolve()
    # Ray Train's own snapshots are not used: the project's checkpoints are verified and in the store.
    shutil.rmtree(storage, ignore_errors=True)
    waiting = [_fit_plan(task, config, storage) for task in tasks]
    running: dict[Any, str] = {}
    deadline = time.monotonic() + config.timeout_s
    # One more than the cluster holds, so that its controller is up when the next worker can start.
    places = concurrent_experts(config, len(tasks)) + 1
    try:
        with StageProgress(context.console, "train", len(tasks), "experts") as progress:
            while waiting or running:
                while waiting and len(running) < places:
                    name, fit = waiting.pop(0)
                    running[start_fit(fit)] = name
                for name in _take_finished(running, deadline, config.timeout_s):
                    progress.advance(note=name)
    finally:
        for reference in running:
            ray.cancel(reference, force=True)


def concurrent_experts(config: TrainConfig, most: int) -> int:
    """Return the number of experts that the cluster's resources hold at once, from 1 to ``most``."""
    workers = config.min_workers or config.workers
    needed = {name: workers * amount for name, amount in config.resources().items()}
    # Without a request nothing would limit them.
    return fitting_actors(most if needed else 1, needed)


def _fit_plan(task: ExpertTask, config: TrainConfig, storage: Path) -> tuple[str, FitPlan]:
    return task.name, FitPlan(
        name=task.ref.id,
        task=pickle.dumps(task),
        workers=config.workers if config.min_workers is None else (config.min_workers, config.workers),
        resources=config.resources(),
        max_failures=config.max_failures,
        storage=str(storage),
    )


def _take_finished(running: dict[Any, str], deadline: float, timeout_s: float) -> list[str]:
    """Wait for the next expert and return the names of those that are done; raise the first cause of a failure."""
    done, left = ray.wait(list(running), timeout=max(0.0, deadline - time.monotonic()))
    if not done:
        raise ClusterError(
            f"{', '.join(running[reference] for reference in left)} not finished in {timeout_s:g} s; {describe_capacity()}",
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
        lines = (context.folder(task.ref) / METRICS_FILE).read_text(encoding="utf-8").splitlines()
        last = json.loads(lines[-1])
        table.add_row(
            escape(task.name),
            f"{last['implicit_accuracy']:.2f}",
            f"{last['validation_implicit_accuracy']:.2f}" if "validation_implicit_accuracy" in last else "-",
            f"{last['winner_error']:.4f} / {last['reference_winner_error']:.4f}",
            f"{last['loser_error']:.4f} / {last['reference_loser_error']:.4f}",
        )
    return table
