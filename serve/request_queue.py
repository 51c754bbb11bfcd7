"""Where requests wait for a renderer: in order, no more than there is room for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager


class QueueFull(Exception):
    """Everything is taken, and so is the room to wait in."""


class RequestQueue:
    """Lets so many requests through at once and keeps so many more waiting, first come first served.

    Serve's own queue says that it is full only after a request's body was fetched, parsed and offered to its router,
    and asks a full renderer again and again whether it has room by now. Both cost more than the answer, and take the
    time from those who wait for an image. Here one looks at a number, and who leaves calls the next one in.
    """

    def __init__(self, slots: int, max_queued: int, report: Callable[[int], None]) -> None:
        """Let ``slots`` through at once and ``seats`` wait, and tell how many do, now and at each change."""
        self._free = asyncio.Semaphore(slots)
        self._max_queued, self._waiting = max_queued, 0
        self._report = report
        report(0)

    @property
    def full(self) -> bool:
        """Say whether one more would be refused."""
        return self._waiting >= self._max_queued and self._free.locked()

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Wait for a slot, and hold it; raise QueueFull at once when there is none and no seat either."""
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
