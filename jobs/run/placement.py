"""Running what loads a model or a judge where a stage's own processes run, and not in the driver.

A driver often sits on a head node without a GPU, and without the memory for a model. So a stage never loads a base model
itself: it places a Ray task with the resources of its own processes. A judge or a feature extractor is loaded by the
driver where that is the same as on a worker, and cheap: the model is on the CPU, the process is given no GPU, and the
cluster is this one machine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

import ray

from cluster.resources import require, timeout_error
from jobs.run.ray_data import first_cause, release_failed_streams, require_gpu

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Place:
    """The kind of process that loads something in a stage, and the settings that say so."""

    what: str
    """For example "a worker of merge"."""
    device: str
    """The device of the model that it holds; "cpu" for one that holds none."""
    resources: Mapping[str, float]
    """Ray's resources of one such process."""
    cpus_field: str
    gpus_field: str
    timeout_s: float
    """The longest wait for its result."""
    timeout_field: str
    retries: int = 3
    """How often a task is tried again whose process or node died."""

    @property
    def fields(self) -> str:
        """Return the settings of its resources."""
        return f"{self.cpus_field}, {self.gpus_field}"

    def require(self) -> None:
        """Raise ConfigError when its model needs a GPU and it has none, ImpossibleResources when no node can hold it."""
        require_gpu(self.device, self.resources.get("GPU", 0.0), self.gpus_field, self.what)
        require(self.resources, self.fields)


def placed(place: Place, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run ``work`` as a Ray task at a place and return its result; without a cluster, in this process.

    Args:
        place: Where it runs.
        work: A function that workers can import.
        args: Its arguments, which travel to the worker.
        kwargs: Further ones.

    Raises:
        ConfigError: The model is on a GPU and the place has none.
        ImpossibleResources: No node can hold it.
        ClusterError: There was no result in time.
        SafetyError: The first cause of its failure.
    """
    if not ray.is_initialized():
        return work(*args, **kwargs)
    place.require()
    release_failed_streams()
    task = ray.remote(work).options(
        num_cpus=place.resources.get("CPU", 0.0),
        num_gpus=place.resources.get("GPU", 0.0),
        max_retries=place.retries,
    )
    pending = task.remote(*args, **kwargs)
    try:
        found: T = ray.get(pending, timeout=place.timeout_s)
    except ray.exceptions.GetTimeoutError as error:
        ray.cancel(pending, force=True)
        raise timeout_error(f"{place.what} was not finished", place.timeout_s, place.timeout_field) from error
    except ray.exceptions.RayError as error:
        raise first_cause(error) from error
    return found


def placed_unless_cheap(place: Place, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run ``work``, which loads no base model, in this process where that is cheap, else as ``placed`` does."""
    return work(*args, **kwargs) if is_cheap(place) else placed(place, work, *args, **kwargs)


def is_cheap(place: Place) -> bool:
    """Return whether the driver may load a judge itself: all on the CPU, on a cluster of one machine."""
    return place.device == "cpu" and not place.resources.get("GPU", 0.0) and len(_hosts()) <= 1


def _hosts() -> set[Any]:
    """Return the addresses of the connected cluster's machines; none without a cluster."""
    return {node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]} if ray.is_initialized() else set()
