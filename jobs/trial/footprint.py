"""What a model needs where it is loaded: the memory of rendering by stage, and the disk of a copy that was fetched."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from safety.experts.cards import measure_render
from safety.experts.memory import is_small
from safety.families.family import ModelConfig, model_folder
from safety.precision import resolve_dtype
from safety.rendering import RenderConfig


def render_peaks(model: ModelConfig, renders: Mapping[str, RenderConfig]) -> dict[str, int | None]:
    """Return the most bytes that rendering needs at once by stage, estimated from the model's settings; None: it is small."""
    dtype = resolve_dtype(model.dtype, torch.device(model.device))
    found: dict[str, int | None] = {}
    for stage, render in renders.items():
        small = is_small(model, render.height, render.width)
        found[stage] = None if small else measure_render(model, render, dtype).peak(render.batch)
    return found


def fetched_bytes(model: ModelConfig) -> int:
    """Return the bytes of the copy that was fetched or unpacked for a model; 0 where it is read where it lies."""
    folder = model_folder(model).absolute()
    caches = (model.cache.expanduser().absolute(), *(path for path in folder.parents if path.name == "snapshots"))
    if not any(cache in folder.parents for cache in caches):
        return 0
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
