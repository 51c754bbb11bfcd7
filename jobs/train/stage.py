"""Trains one LoRA expert per category, all at once under the cluster's resources, on Ray Train and DeepSpeed."""

from __future__ import annotations

import json
import pickle
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
from rich.table import Table

from cluster.errors import ClusterError
from cluster.progress import StageProgress
from cluster.resources import describe_capacity, require
from jobs.run.artifacts import ArtifactRef, StageContext, artifact_ref, finished
from jobs.run.links import EXPERTS_FOLDER
from jobs.run.ray_data import first_cause
from jobs.train.config import ALL_SINGLE, TrainConfig
from jobs.train.fit import FitPlan, start_fit
from jobs.train.gate_moments import GateMomentsTask, gate_moments_task
from jobs.train.worker import ExpertTask, check_task, checkpointer, load_sets
from safety.errors import ConfigError
from safety.experts.curves import METRICS_FILE

KIND = "expert"


def run(context: StageContext, dataset: ArtifactRef) -> dict[str, ArtifactRef]:
    """Train the experts that are not published yet and return all of them by name.

    Raises:
        ConfigError: A category is not in the taxonomy, or the model is on a GPU and the workers have none.
        EmptyDatasetError: A category has no training pair or prompt, or no benign row where the objective reads them.
        ImpossibleResources: The cluster can never run a worker.
        TrainingHealthError: A run blew up.
        ClusterError: The experts did not finish in time.
    """
    tasks = plan(context, dataset)
    train_missing(context, tasks)
    return {task.name: task.ref for task in tasks}


def train_missing(context: StageContext, tasks: Sequence[ExpertTask]) -> None:
    """Train those of the tasks, which share their settings, that are not published yet; raises as ``run`` does."""
    missing = [task for task in tasks if not finished(context, task.ref)]
    for task in tasks:
        if task not in missing:
            context.console.print(f"expert {task.name} {task.ref.id}: already published and verified")
            # A run that died between its last two acts left them.
            checkpointer(context.store, task.ref).clear()
    if missing:
        config = missing[0].config
        require(config.resources(), "train.cpus_per_worker, train.gpus_per_worker")
        sets = load_sets(missing)
        for task in missing:
            check_task(task, sets)
        if config.gate is not None:
            # The same prompts for all of them; read here so that a lack of them is told before any worker starts.
            missing[0].texts.texts()
            # What is damaged is discarded before workers read it.
            finished(context, missing[0].texts.ref)
        train_all(context, missing)
    context.console.print(curves_table(context, tasks))


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
    texts = gate_moments_task(context, dataset, categories)
    return [_task(context, texts, name, learned) for name, learned in named.items()]


def _task(context: StageContext, texts: GateMomentsTask, name: str, categories: tuple[str, ...]) -> ExpertTask:
    """Return an expert's task; ``texts`` are of all categories that are trained, and will be added up."""
    run = context.run
    settings: dict[str, Any] = {"train": run.train.recipe(name), "model": run.model.model_dump(mode="json")}
    if name == ALL_SINGLE:
        settings["categories"] = list(categories)
    if run.train.gate is not None:
        settings["gated together"] = list(texts.categories)
    return ExpertTask(
        run=run.run.name,
        name=name,
        categories=categories,
        texts=texts,
        ref=artifact_ref(context, KIND, settings, [texts.dataset]),
        dataset=texts.dataset,
        config=run.train,
        model=run.model,
        seed=run.run.seed,
        store=context.store,
        settings=settings,
        logs=(run.run.output / EXPERTS_FOLDER).resolve(),
    )


def train_all(context: StageContext, tasks: Sequence[ExpertTask]) -> None:
    """Train the experts concurrently, as many at once as the cluster holds; the others wait their turn."""
    config = context.run.train
    storage = (context.work / "train").resolve()
    # Ray Train's own snapshots are of no use here: checkpoints are the project's, verified and in the store.
    shutil.rmtree(storage, ignore_errors=True)
    waiting = [_fit_plan(task, config, storage) for task in tasks]
    running: dict[Any, str] = {}
    deadline = time.monotonic() + config.timeout_s
    # One more than there is room for, so that its controller is up when a place is free.
    places = rooms(config) + 1
    try:
        with StageProgress(context.console, "train", len(tasks), "experts") as progress:
            while waiting or running:
                while waiting and len(running) < places:
                    name, plan = waiting.pop(0)
                    running[start_fit(plan)] = name
                for name in _take_finished(running, deadline, config.timeout_s):
                    progress.advance(note=name)
    finally:
        for reference in running:
            ray.cancel(reference, force=True)


def rooms(config: TrainConfig) -> int:
    """Return how many experts the cluster's resources hold at once, at least one."""
    total = ray.cluster_resources()
    asked, workers = config.resources().items(), config.min_workers or config.workers
    return max(1, min((int(total.get(n, 0.0) / (workers * a) + 1e-6) for n, a in asked), default=1))


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
    for reference in done:
        try:
            ray.get(reference)
        except Exception as error:
            raise first_cause(error) from error
    return [running.pop(reference) for reference in done]


def curves_table(context: StageContext, tasks: Sequence[ExpertTask]) -> Table:
    """Return each expert's last figures."""
    table = Table(
        "expert", "implicit accuracy", "on validation", "winner error / base", "loser error / base", title="Experts"
    )
    for task in tasks:
        lines = (context.folder(task.ref) / METRICS_FILE).read_text(encoding="utf-8").splitlines()
        last = json.loads(lines[-1])
        table.add_row(
            task.name,
            f"{last['implicit_accuracy']:.2f}",
            f"{last['validation_implicit_accuracy']:.2f}" if "validation_implicit_accuracy" in last else "-",
            f"{last['winner_error']:.4f} / {last['reference_winner_error']:.4f}",
            f"{last['loser_error']:.4f} / {last['reference_loser_error']:.4f}",
        )
    return table
