"""The trial of a run before its hours are spent: pictures, verdicts and a step at their own places, and what follows from them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch

from cluster.preflight.node import Node
from jobs.generate.limit import limited
from jobs.generate.prompts import run_prompts
from jobs.run.config import RunConfig
from jobs.run.needs import STAGES, Loads, run_loads
from jobs.run.placement import placed
from jobs.run.places import generate_place, train_place
from jobs.trial.hours import Rates, StageHours, processes, stage_hours
from jobs.trial.judging import Judged, judge_pictures, pictures_of, time_features
from jobs.trial.pictures import Drawn, ModelFacts, candidates, draw
from jobs.trial.sizes import Bytes, StageMemory, run_bytes, stage_memory
from jobs.trial.step import StepTime, time_step
from jobs.trial.work import stage_work
from jobs.trial.writing import TriedWriter
from safety.base import Config
from safety.errors import ConfigError
from safety.images import encode_png, grid
from safety.judges.judge import JudgeConfig
from safety.prompts.collection import WrittenPairs
from safety.prompts.rows import PromptSet
from safety.rendering import RenderConfig
from safety.taxonomy import Taxonomy

GRID_FILE, TRIAL_FILE = "preflight.png", "preflight.json"
COLUMNS = 4


class RowCount(Config):
    """The rows of a category, or benign ones, by split."""

    category: str
    splits: dict[str, int]


class StageJudge(Config):
    """A judge and the stages that judge with it."""

    stages: tuple[str, ...]
    judged: Judged


class TrialReport(Config):
    """What a trial found, as ``preflight.json`` has it."""

    run: str
    writer: TriedWriter | None = None
    facts: ModelFacts
    judges: tuple[StageJudge, ...]
    rows: tuple[RowCount, ...]
    prompts_checked: int
    over_limit: dict[str, int]
    pictures: int
    steps: int
    """Sampling steps that the pictures were drawn in."""
    picture_s: float
    first_step_s: float
    again_step_s: float
    step_how: str
    memory: tuple[StageMemory, ...]
    bytes: Bytes
    hours: tuple[StageHours, ...]

    @property
    def uncovered(self) -> tuple[str, ...]:
        """Return the categories that no judge of the run covers."""
        if not self.judges:
            return ()
        sets = [set(each.judged.uncovered) for each in self.judges]
        return tuple(name for name in self.judges[0].judged.uncovered if all(name in found for found in sets))


class Trial(NamedTuple):
    """A trial's report, and its pictures as a PNG."""

    report: TrialReport
    grid: bytes


def used_prompts(run: RunConfig, taxonomy: Taxonomy, written: WrittenPairs | None = None) -> PromptSet:
    """Return the prompts that the run uses; ``written`` are its language model's, or what stands for them."""
    return limited(run_prompts(run, taxonomy, written=written).prompts, run.generate.most)


def try_out(
    run: RunConfig, taxonomy: Taxonomy, prompts: PromptSet, nodes: Sequence[Node], writer: TriedWriter | None = None
) -> Trial:
    """Draw, judge and train at the places of the run's own processes; without a cluster, in this process.

    Args:
        run: The run.
        taxonomy: Its taxonomy.
        prompts: Its prompts.
        nodes: The cluster's nodes, for the number of processes at once.
        writer: What was found of the language model that writes prompts.

    Raises:
        EmptyDatasetError: No prompt can be drawn, or a stage would be left without prompts.
        ConfigError: A training step does not fit into the memory.
        ClusterError: A place gave no result in time.
    """
    threads = torch.get_num_threads()
    try:
        with _fitting("generate.render.batch"):
            drawn = _drawn(run, prompts)
        with _fitting("train.expert"):
            step = _step(run, drawn)
        judges = _judges(run, taxonomy, drawn.records)
        embed_s = _embed_s(run, drawn.records)
    finally:
        # Where they ran in this process.
        torch.set_num_threads(threads)
    work = stage_work(run, taxonomy, prompts)
    render = run.generate.render
    rates = Rates(
        image_s=drawn.render_s / drawn.pictures,
        steps=render.steps,
        guided=render.guidance > 1,
        latent_s=drawn.pass_s / drawn.latents,
        judge_s=max((each.judged.seconds for each in judges), default=0.0),
        embed_s=embed_s,
        first_s=step.first_s,
        again_s=step.again_s,
        step_how=step.how,
    )
    report = TrialReport(
        run=run.run.name,
        writer=writer,
        facts=drawn.facts,
        judges=tuple(judges),
        rows=count_rows(taxonomy, prompts),
        prompts_checked=drawn.limit.checked,
        over_limit=drawn.limit.over,
        pictures=drawn.pictures,
        steps=drawn.steps,
        picture_s=rates.image_s,
        first_step_s=step.first_s,
        again_step_s=step.again_s,
        step_how=step.how,
        memory=tuple(stage_memory(run, drawn, step)),
        bytes=run_bytes(run, taxonomy, prompts, drawn, step, work["evaluate"]),
        hours=tuple(stage_hours(work, rates, processes(run, taxonomy, nodes))),
    )
    return Trial(report, encode_png(grid(pictures_of(drawn.records)[0], COLUMNS), {"run": run.run.name}))


@contextmanager
def _fitting(field: str) -> Iterator[None]:
    """Turn a card's word that its memory is full into an error that names the setting."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ConfigError(
            f"the memory is full: {' '.join(str(error).split())[:200]}",
            field=field,
            fix="lower it, or see what fits: safetydpo preflight --cards",
        ) from error


def save(trial: Trial, folder: Path) -> Path:
    """Write the report and the grid into a run's output folder; return the grid's path."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / TRIAL_FILE).write_text(trial.report.model_dump_json(indent=1) + "\n", encoding="utf-8")
    (folder / GRID_FILE).write_bytes(trial.grid)
    return folder / GRID_FILE


def count_rows(taxonomy: Taxonomy, prompts: PromptSet) -> tuple[RowCount, ...]:
    """Return the rows by category and split; benign ones last, a category without a row too."""
    counts: dict[str, dict[str, int]] = {name: {} for name in (*taxonomy.categories, "benign")}
    for pair in prompts.pairs:
        own = counts.setdefault(pair.category, {})
        own[pair.split] = own.get(pair.split, 0) + 1
    for row in prompts.benign:
        counts["benign"][row.split] = counts["benign"].get(row.split, 0) + 1
    return tuple(RowCount(category=name, splits=splits) for name, splits in counts.items())


def _drawn(run: RunConfig, prompts: PromptSet) -> Drawn:
    renders: dict[str, RenderConfig] = {
        "generate": run.generate.render,
        "merge": run.merge.render,
        "evaluate": run.evaluate.render,
    }
    return placed(
        generate_place(run),
        draw,
        run.model,
        renders,
        run.train.expert,
        candidates(prompts),
        prompts,
        run.run.seed,
        run.generate.threads,
    )


def _step(run: RunConfig, drawn: Drawn) -> StepTime:
    train = run.train
    return placed(
        train_place(run),
        time_step,
        run.model,
        run.generate.render,
        train.expert,
        drawn.records,
        drawn.pass_s,
        drawn.latents,
        train.workers,
        train.device_share(run.model.device),
    )


def _judges(run: RunConfig, taxonomy: Taxonomy, records: bytes) -> list[StageJudge]:
    """Return the verdicts of each judge that the run has, generation's first."""
    asked: dict[str, list[tuple[Loads, JudgeConfig]]] = {}
    for loads in run_loads(run, STAGES):
        if (judge := loads.judge) is not None:
            # What an endpoint does with the verdicts is none of the judge's.
            own = judge.model_dump_json(include=set(JudgeConfig.model_fields))
            asked.setdefault(own, []).append((loads, judge))
    found = []
    for several in asked.values():
        first, judge = several[0]
        judged = placed(first.place, judge_pictures, judge, taxonomy, records)
        found.append(StageJudge(stages=tuple(loads.stage for loads, _ in several), judged=judged))
    return found


def _embed_s(run: RunConfig, records: bytes) -> float:
    """Return the seconds in which the run's features embed a picture; 0 without features."""
    for loads in run_loads(run, STAGES):
        if loads.features is not None:
            return placed(loads.place, time_features, loads.features, run.model.device, records)
    return 0.0
