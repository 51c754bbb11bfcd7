"""Which failures are tried again: those that may pass, such as a killed process; one that would come again ends the run."""

from __future__ import annotations

from collections.abc import Iterable

import ray

from cluster.errors import ClusterError, ClusterUnreachable, CorruptArtifact, StoreUnreachable
from jobs.run.ray_data import first_cause
from safety.errors import SafetyError

MAY_PASS = (StoreUnreachable, ClusterUnreachable)
"""Errors that say nothing about the run: however often one comes, the next try may succeed."""
READ_AGAIN = (CorruptArtifact,)
"""Errors that another try may mend, since it reads again or rebuilds; the same one twice is no accident."""


class Retries:
    """Decides, failure by failure of one piece of work, whether another try makes sense."""

    def __init__(self) -> None:
        self._last: frozenset[str] = frozenset()

    def final(self, errors: Iterable[BaseException]) -> BaseException | None:
        """Return the error that would come again at every try, or None when another try makes sense.

        Args:
            errors: What the workers of one try failed with, in Ray's wrappers. A worker that others wait for takes them
                along, so that its own error is only one of several.

        A known error that names a setting or an object comes again. Any other is taken to do so when all of a try's
        errors are, word for word, those of the try before: a lost connection names another port each time.
        """
        found = {error: _unwrapped(first_cause(error)) for error in errors}
        for cause in found.values():
            if is_lasting(cause):
                return cause
        before, self._last = self._last, frozenset(f"{type(cause).__name__}: {cause}" for cause in found.values())
        if self._last != before or any(_may_pass(cause) for cause in found.values()):
            return None
        return next((cause if isinstance(cause, ClusterError) else error for error, cause in found.items()), None)


def _unwrapped(error: BaseException) -> BaseException:
    """Return a worker's own error, which Ray Train sends with its traceback in an error around it."""
    inner = getattr(error, "_base_exc", None)
    return inner if isinstance(inner, BaseException) else error


def is_lasting(cause: BaseException) -> bool:
    """Return whether a known error is one of settings, data or rights, which another try finds again."""
    if isinstance(cause, ClusterError):
        # The class itself stands for what took too long.
        return type(cause) is not ClusterError and not isinstance(cause, MAY_PASS + READ_AGAIN)
    return isinstance(cause, SafetyError)


def _may_pass(cause: BaseException) -> bool:
    """Return whether a process, a node or a connection was lost: Ray's own errors tell of nothing else."""
    return isinstance(cause, (ray.exceptions.RayError, ConnectionError, *MAY_PASS))
