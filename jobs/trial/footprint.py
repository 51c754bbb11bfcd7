"""What a model needs where it is loaded: the memory of rendering by stage, and the disk of a copy that was fetched."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from safety.experts.cards import RenderMemory, measure_render
from safety.experts.memory import is_small
from safety.families.family import ModelConfig, model_folder
from safety.precision import resolve_dtype
from safety.rendering import RenderConfig


def render_peaks(model: ModelConfig, renders: Mapping[str, RenderConfig]) -> dict[str, int | None]:
    """Return the most bytes that rendering needs at once by stage, estimated from the model's settings; None: it is small."""
    dtype = resolve_dtype(model.dtype, torch.device(model.device))
    # The same for all batches of one size of images, and seconds of work for a large model.
    measured: dict[tuple[int | None, int | None], RenderMemory | None] = {}
    for render in renders.values():
        size = (render.height, render.width)
        if size not in measured:
            measured[size] = None if is_small(model, *size) else measure_render(model, render, dtype)
    found = {stage: (measured[render.height, render.width], render.batch) for stage, render in renders.items()}
    return {stage: None if memory is None else memory.peak(batch) for stage, (memory, batch) in found.items()}


def fetched_bytes(model: ModelConfig) -> int:
    """Return the bytes of the copy that was fetched or unpacked for a model; 0 where it is read where it lies."""
    folder = model_folder(model).absolute()
    caches = (model.cache.expanduser().absolute(), *(path for path in folder.parents if path.name == "snapshots"))
    if not any(cache in folder.parents for cache in caches):
        return 0
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
