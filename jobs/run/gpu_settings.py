"""The GPUs of the processes that hold a run's model: one each where the run says nothing, as ``placement: auto`` has it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

GPU_SETTINGS = (
    ("generate", "gpus_per_actor"),
    ("train", "gpus_per_worker"),
    ("merge", "gpus_per_worker"),
    ("evaluate", "gpus_per_actor"),
    ("serve", "num_gpus"),
)
"""The settings of GPUs of the processes that hold the run's model."""


def with_gpus(document: Any) -> Any:
    """Return a run's document with one GPU for each process that holds a model of a GPU, where it says nothing."""
    if not isinstance(document, Mapping) or document.get("placement", "auto") != "auto":
        return document
    model = document.get("model")
    device = model.get("device", "cpu") if isinstance(model, Mapping) else getattr(model, "device", "cpu")
    if not str(device).startswith("cuda"):
        return document
    found = dict(document)
    for section, name in GPU_SETTINGS:
        part = found.get(section, {})
        if isinstance(part, Mapping):
            found[section] = {name: 1.0, **part}
    return found
