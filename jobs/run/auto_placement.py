"""Automatic placement of a model on GPUs: as many processes as there are GPUs, each with the one that its settings have.

What a run's settings name is never changed. On a CPU nothing is: there the defaults are the placement.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, TypeAdapter

from cluster.hashing import ID_DIGITS, config_hash
from cluster.store.artifacts import ArtifactStore
from jobs.run.artifacts import ArtifactRef
from jobs.run.config import RunConfig
from jobs.run.work_area import WorkArea
from safety.errors import ConfigError

POOLS = (
    ("generate", "actors", "gpus_per_actor"),
    ("merge", "workers", "gpus_per_worker"),
    ("evaluate", "actors", "gpus_per_actor"),
)
"""Sections, and their settings of the number of processes and of each one's GPUs."""
WORKERS = TypeAdapter(Annotated[int, Field(gt=0)])


class BegunWorkers:
    """The number of workers that a run's experts were begun with, by their recipe; kept in the store.

    Adapters depend on it, so a run that is started again on a larger or smaller cluster goes on with it.
    """

    def __init__(self, store: ArtifactStore, run: RunConfig) -> None:
        recipe = {name: value for name, value in run.train.recipe("").items() if name != "workers"}
        self._area = WorkArea(store, ArtifactRef("workers", run.run.name))
        self._name = f"{config_hash(recipe)[:ID_DIGITS]}.json"

    def read(self) -> int | None:
        """Return the number, or None where no expert is begun."""
        return self._area.load(self._name, WORKERS.validate_json)

    def write(self, workers: int) -> None:
        """Keep the number, when experts are begun with it."""
        self._area.write(self._name, WORKERS.dump_json(workers))


def chooses_workers(run: RunConfig) -> bool:
    """Return whether the cluster's GPUs decide how many workers an expert has: the settings do not say it."""
    return _counts_gpus(run) and not {"workers", "min_workers"} & run.train.model_fields_set


def keep_workers(run: RunConfig, store: ArtifactStore) -> None:
    """Keep the number of workers that a run's experts are begun with, for a start whose settings do not say it."""
    if _counts_gpus(run):
        BegunWorkers(store, run).write(run.train.workers)


def _counts_gpus(run: RunConfig) -> bool:
    return run.placement == "auto" and run.model.device != "cpu" and run.train.gpus_per_worker >= 1


def settled(run: RunConfig, resources: Mapping[str, float], begun: int | None = None) -> RunConfig:
    """Return the run with as many processes as the cluster's GPUs hold, where its settings do not say how many.

    Experts are trained side by side, one worker each; where GPUs would be left over, each gets more workers, which
    share its steps. Their number is part of what an adapter depends on.

    Args:
        run: The run.
        resources: The cluster's, with all nodes that it can add.
        begun: The number of workers that its experts were begun with; None where none is.

    Raises:
        ConfigError: A step of the consolidation cannot be shared by as many workers as experts were begun with.
    """
    if run.placement != "auto" or run.model.device == "cpu":
        return run
    changed: dict[str, Any] = {}
    for section, count, each in POOLS:
        part = getattr(run, section)
        share = getattr(part, each)
        if count not in part.model_fields_set and share > 0:
            changed[section] = part.model_copy(update={count: max(1, int(resources.get("GPU", 0.0) / share + 1e-6))})
    if chooses_workers(run):
        if begun is not None:
            _require_shared(run, begun)
        workers = begun or _workers(run, _places(run, resources) // _experts(run))
        changed["train"] = run.train.model_copy(update={"workers": workers})
    return run.model_copy(update=changed)


def workers_notice(run: RunConfig, resources: Mapping[str, float], begun: int | None) -> str:
    """Return what is said of a number of workers that ``settled`` has chosen, or kept, for a run."""
    workers, places = run.train.workers, _places(run, resources)
    if begun is None:
        why = f"by the cluster's {resources.get('GPU', 0.0):g} GPUs"
    else:
        why = "as this run's experts were begun"
        if places < workers:
            why += f", though the cluster holds {places}: an expert that is not finished waits for more GPUs"
    return (
        f"train.workers: {workers} an expert, {why}; experts depend on it, so it stays once they are begun: "
        "set it to train anew with another number"
    )


def _places(run: RunConfig, resources: Mapping[str, float]) -> int:
    """Return the number of workers that the cluster's GPUs hold at once."""
    return int(resources.get("GPU", 0.0) / run.train.gpus_per_worker + 1e-6)


def _experts(run: RunConfig) -> int:
    return len(run.train.categories or run.load_taxonomy().categories) + int(run.train.all_single)


def _workers(run: RunConfig, most: int) -> int:
    """Return the most workers, up to ``most``, that can share a step's rows evenly."""
    for workers in range(most, 1, -1):
        try:
            run.check_parts(workers)
        except ValueError:
            continue
        return workers
    return 1


def _require_shared(run: RunConfig, begun: int) -> None:
    """Raise ConfigError when settings that were changed since cannot be shared by as many workers as experts were begun with."""
    try:
        run.check_parts(begun)
    except ValueError as error:
        raise ConfigError(
            str(error),
            field="consolidate",
            fix=f"use multiples of {begun}, the workers that this run's experts were begun with, or set train.workers",
        ) from None
