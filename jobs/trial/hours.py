"""Hours by stage: the work of each, by the seconds that the trial has measured, over the processes that do it at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from cluster.preflight.checks import count_fitting
from cluster.preflight.node import Node
from jobs.run.config import RunConfig
from jobs.trial.work import StageWork, trained_experts
from safety.base import Config
from safety.taxonomy import Taxonomy


class Rates(NamedTuple):
    """Seconds of each kind of work on one process."""

    image_s: float
    """A picture of generation, rendered and encoded."""
    steps: int
    """Sampling steps of it."""
    guided: bool
    latent_s: float
    """A latent's prediction by the denoiser."""
    judge_s: float
    embed_s: float
    first_s: float
    """A training step on a batch that is new."""
    again_s: float
    step_how: str
    """How the training steps' seconds were found: "measured" or "arithmetic"."""


class StageHours(Config):
    """One stage's time."""

    stage: str
    hours: float
    processes: int
    """That work at once."""
    how: str
    """What it rests on."""


def processes(run: RunConfig, taxonomy: Taxonomy, nodes: Sequence[Node]) -> dict[str, int]:
    """Return how many processes of each stage work at once on a cluster, at least one."""
    train = run.train
    wanted = {
        "generate": (run.generate.resources(), run.generate.actors),
        "train": (
            {name: amount * train.workers for name, amount in train.resources().items()},
            trained_experts(run, taxonomy),
        ),
        "merge": (run.merge.resources(), run.merge.workers),
        "evaluate": (run.evaluate.resources(), run.evaluate.actors),
    }
    if train.workers > 1:
        # Workers of one expert may lie on several nodes.
        fitting = count_fitting(train.resources(), nodes) // train.workers
        wanted["train"] = ({}, min(trained_experts(run, taxonomy), int(max(1, fitting))))
    return {stage: int(max(1, min(most, count_fitting(each, nodes)))) for stage, (each, most) in wanted.items()}


def stage_hours(work: Mapping[str, StageWork], rates: Rates, at_once: Mapping[str, int]) -> list[StageHours]:
    """Return each stage's hours; stages without work are left out.

    The rounds of a stage's largest pieces are not counted: eight experts on three places are taken to need 8/3 of one's time.
    """
    found = []
    for stage, each in work.items():
        if each.is_empty:
            continue
        count = at_once.get(stage, 1)
        seconds = drawing_s(each, rates) + each.predicted * rates.latent_s
        seconds += each.judged * rates.judge_s + each.embedded * rates.embed_s
        trained = each.first_steps * rates.first_s + each.again_steps * rates.again_s
        # Consolidation trains one adapter; what it draws is shared by the workers of the merge.
        shared = at_once["merge"] if stage == "consolidate" else count
        hours = (seconds / shared + trained / count) / 3600
        found.append(StageHours(stage=stage, hours=hours, processes=max(shared, count), how=_how(each, rates)))
    return found


def drawing_s(work: StageWork, rates: Rates) -> float:
    """Return the seconds of a stage's images: the pictures' own, with the passes that its settings have more or fewer."""
    passes = work.steps * (2 if work.guided else 1) - rates.steps * (2 if rates.guided else 1)
    return work.images * work.pixels * max(0.0, rates.image_s + passes * rates.latent_s)


def _how(work: StageWork, rates: Rates) -> str:
    parts = []
    if work.images:
        parts.append(f"{work.images:,} images by the pictures")
    if work.first_steps or work.again_steps:
        parts.append(f"{work.first_steps + work.again_steps:,.0f} steps, {rates.step_how}")
    if work.predicted:
        parts.append(f"{work.predicted:,} predictions by a pass")
    return "; ".join(parts)
