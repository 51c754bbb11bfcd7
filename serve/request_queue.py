"""The bounded first-in, first-out queue of requests that wait for a renderer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager


class QueueFull(Exception):
    """All slots are taken and the queue is full."""


class RequestQueue:
    """A semaphore of ``slots`` with at most ``max_queued`` waiters, served first come, first served.

    Serve's own queue reports that it is full only after a request's body was fetched, parsed and offered to its router,
    and it polls a full renderer until it has a free slot. Both cost more than the rejection itself, and delay the
    requests that wait for an image. Here the check reads a number, and a finished request wakes the next one.
    """

    def __init__(self, slots: int, max_queued: int, report: Callable[[int], None]) -> None:
        """Allow ``slots`` at once and ``max_queued`` waiting; ``report`` gets the number waiting at each change."""
        self._free = asyncio.Semaphore(slots)
        self._max_queued, self._waiting = max_queued, 0
        self._report = report
        report(0)

    @property
    def full(self) -> bool:
        """Return whether one more request would be rejected."""
        return self._waiting >= self._max_queued and self._free.locked()

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Wait for a slot and hold it; raise QueueFull at once when all are taken and the queue is full."""
        if self.full:
            raise QueueFull
        if self._free.locked():
            self._change(1)
            try:
                await self._free.acquire()
            finally:
                self._change(-1)
        else:
            await self._free.acquire()
        try:
            yield
        finally:
            self._free.release()

    def _change(self, change: int) -> None:
        self._waiting += change
        self._report(self._waiting)
