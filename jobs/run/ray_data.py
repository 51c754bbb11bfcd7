"""Reading a Ray Data stream quietly and with a time limit, and finding the first cause when an actor fails."""

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
from cluster.resources import timeout_error
from safety.errors import SafetyError

T = TypeVar("T")
_END = object()
DEPTH = 50


def configure_data() -> None:
    """Keep Ray Data off the terminal, and let an actor's own error through: the cause of its wrapper gets lost."""
    settings = ray.data.DataContext.get_current()
    settings.enable_progress_bars = False
    settings.raise_original_map_exception = True
    set_ray_data_console_level(logging.ERROR)


def within(rows: Iterable[T], timeout_s: float, field: str) -> Iterator[T]:
    """Yield the rows; raise the first cause of a failure, and ClusterError when none comes for ``timeout_s``.

    Args:
        rows: A stream that may block for ever, such as one whose actors find no place.
        timeout_s: The longest wait for the next row.
        field: The setting that holds the limit; the error names it.
    """
    # A stream that ended by an error leaves its executor in a cycle with the traceback, and so its actors alive with all
    # that they reserve, which this stream may have to wait for.
    gc.collect()
    waiting: queue.Queue[T | BaseException | object] = queue.Queue()

    def read() -> None:
        try:
            for row in rows:
                waiting.put(row)
        except BaseException as error:  # It is raised again where the rows are read.
            waiting.put(error)
        else:
            waiting.put(_END)

    threading.Thread(target=read, daemon=True).start()
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
    """Return the error with a known cause below Ray's wrappings, or what Ray wrapped when there is none."""
    seen: list[BaseException | None] = [error]
    for found in seen:
        # Ray's wrapper takes on the type of what it wraps, but its message is a whole remote traceback.
        if isinstance(found, (SafetyError, ClusterError)) and not isinstance(found, ray.exceptions.RayError):
            return found
        if found is not None and len(seen) < DEPTH:
            # A trainer's error holds those of its workers, each in a wrapper that keeps its traceback.
            seen += getattr(found, "worker_failures", {}).values()
            seen += [getattr(found, "cause", None), getattr(found, "_base_exc", None)]
            seen += [found.__cause__, found.__context__]
    wrapped = getattr(error, "cause", None) if isinstance(error, ray.exceptions.RayTaskError) else None
    return wrapped if isinstance(wrapped, BaseException) else error
