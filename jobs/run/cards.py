"""What a run's model needs in memory: a check before any work, and the table of presets by card."""

from __future__ import annotations

import torch
from rich.table import Table

from cluster.preflight.check import Finding, failed, passed
from jobs.run.config import RunConfig
from jobs.run.placement import placed_unless_cheap
from jobs.run.places import train_place
from safety.errors import ConfigError
from safety.experts.cards import CARDS, CardPreset, presets
from safety.experts.memory import GIB, choose_plan, free_bytes, latents_of, needed_memory
from safety.experts.passes import PassPlan

SMALL = "the model is small: a training step fits anywhere"


def check_memory(run: RunConfig) -> Finding:
    """Return whether a training step fits where the run's workers will be, and by which plan; tried at their place."""
    return placed_unless_cheap(train_place(run), step_finding, run)


def step_finding(run: RunConfig) -> Finding:
    """Return what a step needs, against this process's own device."""
    config, workers = run.train.expert, run.train.min_workers or run.train.workers
    render, shards = run.generate.render, run.train.shards
    memory = needed_memory(run.model, config, render.height, render.width, shards)
    if memory is None:
        return passed(SMALL)
    latents = latents_of(config, workers)
    free = free_bytes(torch.device(run.model.device), run.train.device_share(run.model.device))
    try:
        plan = choose_plan(memory, config, latents, free)
    except ConfigError as error:
        return failed(f"{error.message}; {fitting_cards(run)}", error.fix)
    peak = memory.peak(plan, latents)
    return passed(
        f"a step of {latents} latents needs {peak / GIB:.1f} GiB of {free / GIB:.1f} ({describe(plan)}); "
        f"the base is {memory.base / GIB:.1f}, the adapter with its optimizer {memory.adapter / GIB:.2f}"
    )


def fitting_cards(run: RunConfig) -> str:
    """Return which cards hold a training step of a run."""
    found = [preset.card for preset in presets(run.model, run.train.expert, run.generate.render) if preset.plan]
    return f"it fits on cards of {found[0]} GB and more" if found else f"it fits on no card up to {CARDS[-1]} GB"


def describe(plan: PassPlan) -> str:
    """Return a plan in words."""
    passes = "in one pass" if plan.images is None else f"{plan.images} latents a pass"
    return f"{passes}, with{'' if plan.checkpointing else 'out'} checkpointing"


def card_table(run: RunConfig) -> Table:
    """Return the presets of a run's model by card, in the settings' own names."""
    shown = Table(title=f"{run.model.path}: presets by card, in bfloat16", title_justify="left")
    for name in ("card", "model.quantize", "train.expert.checkpointing", "micro_batch", "step", "render.batch"):
        shown.add_column(name, justify="right")
    for preset in presets(run.model, run.train.expert, run.generate.render):
        shown.add_row(*_row(preset, latents_of(run.train.expert, run.train.workers)))
    return shown


def _row(preset: CardPreset, latents: int) -> tuple[str, ...]:
    batch = str(min(preset.render_batch, 64)) if preset.render_batch else "none fits"
    if preset.plan is None or preset.step is None:
        return f"{preset.card} GB", preset.quantize, "-", "-", "too small", batch
    on = "on" if preset.plan.checkpointing else "off"
    size = str(preset.plan.images or latents)
    return f"{preset.card} GB", preset.quantize, on, size, f"{preset.step / GIB:.1f} GiB", batch
