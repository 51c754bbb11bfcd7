"""Automatic placement of a model on GPUs: a GPU for each process that holds it, and as many processes as there are GPUs.

What a run's settings name is never changed. On a CPU nothing is: there the defaults are the placement.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # RunConfig fills its settings in by ``with_gpus``.
    from jobs.run.config import RunConfig

GPU_SETTINGS = (
    ("generate", "gpus_per_actor"),
    ("train", "gpus_per_worker"),
    ("merge", "gpus_per_worker"),
    ("evaluate", "gpus_per_actor"),
    ("serve", "num_gpus"),
)
"""The settings of GPUs of the processes that hold the run's model."""
POOLS = (
    ("generate", "actors", "gpus_per_actor"),
    ("merge", "workers", "gpus_per_worker"),
    ("evaluate", "actors", "gpus_per_actor"),
)
"""Sections, and their settings of the number of processes and of each one's GPUs."""


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


def settled(run: RunConfig, resources: Mapping[str, float]) -> RunConfig:
    """Return the run with as many processes as the cluster's GPUs hold, where its settings do not say how many.

    Experts are trained side by side, one worker each; where GPUs would be left over, each gets more workers, which
    share its steps. Their number is part of what an adapter depends on, so set ``train.workers`` on a cluster that grows.
    """
    if run.placement != "auto" or run.model.device == "cpu":
        return run
    changed: dict[str, Any] = {}
    for section, count, each in POOLS:
        part = getattr(run, section)
        share = getattr(part, each)
        if count not in part.model_fields_set and share > 0:
            changed[section] = part.model_copy(update={count: max(1, int(resources.get("GPU", 0.0) / share + 1e-6))})
    train = run.train
    if not {"workers", "min_workers"} & train.model_fields_set and train.gpus_per_worker >= 1:
        places = int(resources.get("GPU", 0.0) / train.gpus_per_worker + 1e-6)
        experts = len(train.categories or run.load_taxonomy().categories) + int(train.all_single)
        changed["train"] = train.model_copy(update={"workers": _workers(run, places // experts)})
    return run.model_copy(update=changed)


def _workers(run: RunConfig, most: int) -> int:
    """Return the most workers, up to ``most``, that can share a step's rows evenly."""
    for workers in range(most, 1, -1):
        try:
            run.train.expert.check_parts(workers)
        except ValueError:
            continue
        return workers
    return 1
