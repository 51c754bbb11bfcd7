"""Requests in flight, and waiting for them before the endpoint goes away."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from serve.errors import unavailable

RETRY_AFTER_S = 5


class Drain:
    """Counts the requests for images that are being answered; once it has begun, it lets none in.

    Serve stops gateway and renderers at the same time when it deletes an application, and a request that waits in the
    gateway then finds no renderer any more. So the gateway is emptied first.
    """

    def __init__(self) -> None:
        self._in_flight, self._begun = 0, False
        self._empty = asyncio.Event()

    @contextmanager
    def request(self) -> Iterator[None]:
        """Count a request for the block; raise ApiError 503 when the endpoint is going away."""
        if self._begun:
            raise unavailable(RETRY_AFTER_S)
        self._in_flight += 1
        try:
            yield
        finally:
            self._in_flight -= 1
            if self._in_flight == 0:
                self._empty.set()

    async def wait(self, timeout_s: float) -> bool:
        """Let no more requests in, and return whether all that were in are answered within the time."""
        self._begun = True
        if self._in_flight == 0:
            return True
        self._empty.clear()
        try:
            await asyncio.wait_for(self._empty.wait(), timeout_s)
        except TimeoutError:
            return False
        return True
