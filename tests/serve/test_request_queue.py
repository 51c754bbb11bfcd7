"""The request queue: order, bounds, and slots that are freed however their request ends."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.request_queue import QueueFull, RequestQueue

pytestmark = pytest.mark.timeout(60)


class Requests:
    """Requests that hold their slot until they are released."""

    def __init__(self, slots: int, max_queued: int) -> None:
        self.waiting = 0
        self.queue = RequestQueue(slots, max_queued, self.report)
        self.running: list[int] = []
        self.rejected: list[int] = []
        self.tasks: dict[int, asyncio.Task[None]] = {}
        self._leave: dict[int, asyncio.Event] = {}

    def report(self, waiting: int) -> None:
        self.waiting = waiting

    async def come(self, number: int) -> None:
        self._leave[number] = asyncio.Event()
        self.tasks[number] = asyncio.create_task(self._request(number))
        await settle()

    async def go(self, number: int) -> None:
        self._leave[number].set()
        await settle()

    async def give_up(self, number: int) -> None:
        self.tasks[number].cancel()
        await settle()

    async def _request(self, number: int) -> None:
        try:
            async with self.queue.slot():
                self.running.append(number)
                try:
                    await self._leave[number].wait()
                finally:
                    self.running.remove(number)
        except QueueFull:
            self.rejected.append(number)


async def settle() -> None:
    """Let every task run until all of them wait."""
    for _ in range(10):
        await asyncio.sleep(0)


def run(body: Callable[[Requests], Coroutine[Any, Any, None]], slots: int, max_queued: int) -> None:
    async def main() -> None:
        requests = Requests(slots, max_queued)
        try:
            await body(requests)
        finally:
            for task in requests.tasks.values():
                task.cancel()
            await asyncio.gather(*requests.tasks.values(), return_exceptions=True)

    asyncio.run(main())


def test_accepts_as_many_as_slots_and_queue_hold_and_rejects_the_next_at_once() -> None:
    async def body(requests: Requests) -> None:
        for number in range(5):
            assert not requests.queue.full
            await requests.come(number)
        assert requests.running == [0, 1]
        assert requests.queue.full
        await requests.come(5)
        assert requests.rejected == [5]
        await requests.go(0)
        assert not requests.queue.full
        assert requests.running == [1, 2]

    run(body, slots=2, max_queued=3)


def test_a_request_that_gives_up_frees_its_place_or_its_slot() -> None:
    async def body(requests: Requests) -> None:
        for number in range(3):
            await requests.come(number)
        await requests.give_up(1)
        assert not requests.queue.full
        await requests.give_up(0)
        assert requests.running == [2]

    run(body, slots=1, max_queued=2)


def test_a_slot_is_given_back_after_an_error() -> None:
    async def main() -> None:
        queue = RequestQueue(1, 1, lambda _: None)
        for _ in range(3):
            with contextlib.suppress(ZeroDivisionError):
                async with queue.slot():
                    raise ZeroDivisionError
        assert not queue.full

    asyncio.run(main())


@given(
    slots=st.integers(1, 3),
    max_queued=st.integers(1, 3),
    steps=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 9))),
)
def test_agrees_with_a_plain_queue(slots: int, max_queued: int, steps: list[tuple[int, int]]) -> None:
    """Requests come, end or give up: the running and the rejected ones are those of a plain list."""

    async def body(requests: Requests) -> None:
        line: list[int] = []
        rejected: list[int] = []
        for number, (what, which) in enumerate(steps):
            if what == 0:
                await requests.come(number)
                (line if len(line) < slots + max_queued else rejected).append(number)
            elif line:
                running = line[:slots]
                leaving = running[which % len(running)] if what == 1 else line[which % len(line)]
                await (requests.go(leaving) if what == 1 else requests.give_up(leaving))
                line.remove(leaving)
            assert requests.running == line[:slots]
            assert requests.waiting == max(0, len(line) - slots)
            assert requests.rejected == rejected
            assert requests.queue.full == (len(line) == slots + max_queued)

    run(body, slots, max_queued)
