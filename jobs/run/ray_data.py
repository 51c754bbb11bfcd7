"""Ray as the stages use it: pools of actors, a stream read with a time limit, the first cause of a failure."""

from __future__ import annotations

import gc
import logging
import queue
import threading
from collections.abc import Iterable, Iterator
from typing import TypeVar

import ray

from cluster.errors import ClusterError
from cluster.progress import set_ray_data_console_level
from cluster.ray_private import STREAM_READER
from cluster.resources import PoolSize, timeout_error
from safety.errors import ConfigError, SafetyError

T = TypeVar("T")
_END = object()
DEPTH = 50


def require_gpu(device: str, gpus: float, field: str, what: str) -> None:
    """Raise ConfigError when the model is on a GPU and ``what`` ("an actor") gets none by the setting ``field``."""
    if device != "cpu" and not gpus:
        raise ConfigError(
            f"the model is on {device!r} and {what} is given no GPU",
            field=field,
            fix="set it to 1 or a share of 1, or set model.device to 'cpu'",
        )


def actor_pool(size: PoolSize, least: int, tasks: int) -> ray.data.ActorPoolStrategy:
    """Return the strategy of a pool of actors that grows with the cluster.

    A pool of a fixed size never asks an autoscaler for more. This one begins with what fits and asks for the rest.

    Args:
        size: What fits now, and with all nodes that can be added.
        least: The actors that are kept in any case.
        tasks: The tasks that there are, of which no actor needs less than one.
    """
    most = max(1, min(size.most, tasks))
    first = min(size.now, most)
    return ray.data.ActorPoolStrategy(min_size=min(max(least, first), most), max_size=most)


def configure_data() -> None:
    """Keep Ray Data's own output off the terminal, and let an actor's error through, whose cause its wrapper loses."""
    settings = ray.data.DataContext.get_current()
    settings.enable_progress_bars = False
    settings.raise_original_map_exception = True
    set_ray_data_console_level(logging.ERROR)


def release_failed_streams() -> None:
    """Free the actors of streams that ended by an error, whose resources what comes next may have to wait for.

    Such a stream leaves its executor in a reference cycle with the traceback, and so its actors alive.
    """
    gc.collect()


def within(rows: Iterable[T], timeout_s: float, field: str) -> Iterator[T]:
    """Yield the rows; raise the first cause of a failure, and ClusterError when none comes for ``timeout_s``.

    Args:
        rows: A stream that may block for ever, as when its actors cannot be scheduled.
        timeout_s: The longest wait for the next row.
        field: The setting of the limit; the error names it.
    """
    release_failed_streams()
    waiting: queue.Queue[T | BaseException | object] = queue.Queue()

    def read() -> None:
        try:
            for row in rows:
                waiting.put(row)
        except BaseException as error:  # It is raised again where the rows are read.
            waiting.put(error)
        else:
            waiting.put(_END)

    threading.Thread(target=read, name=STREAM_READER, daemon=True).start()
    while True:
        try:
            item = waiting.get(timeout=timeout_s)
        except queue.Empty:
            raise timeout_error("nothing was finished", timeout_s, field) from None
        if item is _END:
            return
        if isinstance(item, BaseException):
            raise first_cause(item) from item
        yield item  # type: ignore[misc]


def first_cause(error: BaseException) -> BaseException:
    """Return the first known error below Ray's wrappers, or the error that Ray wrapped when there is none."""
    seen: list[BaseException | None] = [error]
    for found in seen:
        # Ray's wrapper takes on the type of what it wraps, but its message is a whole remote traceback.
        if isinstance(found, (SafetyError, ClusterError)) and not isinstance(found, ray.exceptions.RayError):
            return found
        if found is not None and len(seen) < DEPTH:
            # A trainer's error holds those of its workers, each in a wrapper that keeps its traceback.
            seen += getattr(found, "worker_failures", {}).values()
            seen += [getattr(found, name, None) for name in ("controller_failure", "cause", "_base_exc")]
            seen += [found.__cause__, found.__context__]
    wrapped = getattr(error, "cause", None) if isinstance(error, ray.exceptions.RayTaskError) else None
    return wrapped if isinstance(wrapped, BaseException) else error
