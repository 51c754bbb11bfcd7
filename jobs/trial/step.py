"""A training step of a run, taken on the trial's pictures where a worker of training will be."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from safetensors.torch import load
from torch import Tensor

from safety.dataset.preferences import PreferenceSet
from safety.dataset.record import load_group
from safety.experts.config import ExpertConfig
from safety.experts.expert import Expert
from safety.experts.memory import choose_plan, free_bytes, latents_of, needed_memory
from safety.families import ModelConfig, load_model
from safety.rendering import RenderConfig

BUDGET_S = 60.0
"""The longest that the steps are to take; beyond it their time is arithmetic."""
PASSES_FIRST, PASSES_AGAIN = 3.2, 2.2
"""Forward passes that a step takes the time of, with the reference's and where that is cached: a backward pass over frozen
weights takes some 1.2."""
MEASURED, ARITHMETIC = "measured", "arithmetic"


class StepTime(NamedTuple):
    """What a training step takes on one worker."""

    how: str
    """"measured", or "arithmetic" from a pass of the denoiser."""
    first_s: float
    """Of a batch that is new."""
    again_s: float
    """Of a batch that repeats, whose reference errors are kept."""
    adapter: int
    """Trained parameters."""
    peak: int | None
    """Most bytes of the GPU in use; None on a CPU, and where no step was taken."""
    estimate: int | None
    """Most bytes of a step, estimated; None: the model is small."""
    free: int
    """Bytes of the device that the process may take."""


def by_arithmetic(pass_s: float, latents: int, expert: ExpertConfig, workers: int) -> tuple[float, float]:
    """Return the seconds of a new and of a repeated step, from those of one pass over a number of latents."""
    each = pass_s / latents * latents_of(expert, workers) * expert.accumulation
    return PASSES_FIRST * each, PASSES_AGAIN * each


def time_step(
    config: ModelConfig,
    render: RenderConfig,
    expert: ExpertConfig,
    records: bytes,
    pass_s: float,
    latents: int,
    workers: int,
    share: float,
) -> StepTime:
    """Take a worker's part of some steps on the pictures of the trial, in this process; nothing is updated.

    Args:
        config: The model.
        render: How the run's pictures are rendered.
        expert: The expert's settings.
        records: The rendered rows.
        pass_s: Seconds of one pass of the denoiser, by which steps that would take too long are left out.
        latents: Latents of such a pass.
        workers: Workers that share a step.
        share: The share of the device that one worker may take.

    Raises:
        ConfigError: A step does not fit into the memory.
    """
    torch.set_num_threads(expert.threads)
    device = torch.device(config.device)
    free = free_bytes(device, share)
    count = latents_of(expert, workers)
    memory = needed_memory(config, expert, render.height, render.width)
    plan = choose_plan(memory, expert, count, free)
    estimate = None if memory is None else memory.peak(plan, count)
    first_s, again_s = by_arithmetic(pass_s, latents, expert, workers)
    model = load_model(config, "denoiser")
    settings = expert.model_copy(update={"validation_rows": 0, "distinct_batches": 2})
    step = Expert(model, preferences_of(records), settings, 0, workers, plan=plan)
    adapter = sum(parameter.numel() for parameter in step.parameters_by_name().values())
    if 2 * first_s + again_s > BUDGET_S:
        return StepTime(ARITHMETIC, first_s, again_s, adapter, None, estimate, free)
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    times = []
    # The first step warms up; the last one is the second one's batch again.
    for number in (0, 1, 1):
        started = time.perf_counter()
        for part in range(0, step.parts, workers):
            step(number, part).loss.backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - started)
        step.zero_grad(set_to_none=True)
    peak = torch.cuda.max_memory_reserved(device) if device.type == "cuda" else None
    return StepTime(MEASURED, times[1], times[2], adapter, peak, estimate, free)


def preferences_of(records: bytes) -> PreferenceSet:
    """Return the pictures as a training set, whose benign rows are the winners once more.

    A row of one picture, benign or of a source without a safe side, is winner and loser at once: a step takes as long on it.
    """
    rows = [load(record.tensors) for record in load_group(records) if record.tensors is not None]
    names = tuple(f"row-{number}" for number in range(len(rows)))
    winners, losers = (torch.stack([_latents(row, side) for row in rows]) for side in ("winner", "loser"))
    unsafe, safe = (_stacked([_states(row, side) for row in rows]) for side in ("unsafe", "safe"))
    return PreferenceSet(
        category="trial",
        ids=names,
        splits=("train",) * len(names),
        winner=winners,
        loser=losers,
        unsafe=unsafe,
        safe=safe,
        benign_ids=names,
        benign_splits=("train",) * len(names),
        benign=winners,
        benign_prompts=safe,
        empty={key: torch.zeros_like(value[:1]) for key, value in safe.items()},
    )


def _latents(row: Mapping[str, Tensor], side: str) -> Tensor:
    """Return the latents of one side of a row; of a row that has one picture, those."""
    found = {name: value for name, value in row.items() if "/" not in name}
    return found.get(side, next(iter(found.values()))).float()


def _states(row: Mapping[str, Tensor], side: str) -> dict[str, Tensor]:
    """Return the text states of one side of a row; of a row that has one prompt, those."""
    sides = {name.partition("/")[0] for name in row if "/" in name}
    chosen = side if side in sides else min(sides)
    return {
        name.partition("/")[2]: value.float() for name, value in row.items() if name.partition("/")[0] == chosen != name
    }


def _stacked(every: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {key: torch.stack([states[key] for states in every]) for key in every[0]}
