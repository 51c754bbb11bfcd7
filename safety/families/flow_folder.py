"""What the folders of flow-matching families have in common beside their layout: the schedule, the VAE's shift, equal sizes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from safety.families.layout import Layout
from safety.families.weight_files import broken, read_json

T5_TOKENIZERS = ("T5Tokenizer", "T5TokenizerFast")
SCHEDULER = "FlowMatchEulerDiscreteScheduler"
OTHER_SCHEDULES = ("stochastic_sampling", "invert_sigmas")
"""Settings of the scheduler under which sampling is not deterministic, or noise levels run the other way."""
LEFT_OUT = ("feature_extractor", "image_encoder")
"""Parts of the pipelines that are for image prompts."""


class Pair(NamedTuple):
    """Two sizes of a folder's networks that must be equal."""

    what: str
    value: Any
    other: str
    wanted: Any


def require_equal(layout: Layout, folder: Path, pairs: Iterable[Pair]) -> None:
    """Raise ConfigError for the first pair of sizes that differ."""
    for pair in pairs:
        if pair.value != pair.wanted:
            raise layout.misfit(f"{folder}: {pair.what} is {pair.value}, and {pair.other} is {pair.wanted}")


def require_schedule(layout: Layout, folder: Path) -> None:
    """Refuse a scheduler of another kind, and one that draws noise while it samples."""
    scheduler = read_json(folder / "scheduler" / "scheduler_config.json")
    kind = scheduler.get("_class_name")
    odd = [name for name in OTHER_SCHEDULES if scheduler.get(name)]
    if kind != SCHEDULER or odd:
        found = f"a {kind}" if kind != SCHEDULER else f"one with {' and '.join(odd)}"
        raise layout.misfit(f"{folder / 'scheduler'} is {found}, and the family takes a plain {SCHEDULER}")


def require_latent_range(folder: Path) -> None:
    """Refuse a VAE that does not say how its latents are scaled and shifted: the stock pipelines need both."""
    file = folder / "vae" / "config.json"
    settings = read_json(file)
    for name in ("scaling_factor", "shift_factor"):
        if settings.get(name) is None:
            raise broken(file, f"it states no {name}")
