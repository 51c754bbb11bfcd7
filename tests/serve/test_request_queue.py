"""The waiting room: order, bounds, and places given back, whatever becomes of who held them."""

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


class Visits:
    """Requests that hold their slot until they are told to go."""

    def __init__(self, slots: int, max_queued: int) -> None:
        self.waiting = 0
        self.room = RequestQueue(slots, max_queued, self.told)
        self.inside: list[int] = []
        self.refused: list[int] = []
        self.tasks: dict[int, asyncio.Task[None]] = {}
        self._leave: dict[int, asyncio.Event] = {}

    def told(self, waiting: int) -> None:
        self.waiting = waiting

    async def come(self, number: int) -> None:
        self._leave[number] = asyncio.Event()
        self.tasks[number] = asyncio.create_task(self._visit(number))
        await settle()

    async def go(self, number: int) -> None:
        self._leave[number].set()
        await settle()

    async def give_up(self, number: int) -> None:
        self.tasks[number].cancel()
        await settle()

    async def _visit(self, number: int) -> None:
        try:
            async with self.room.slot():
                self.inside.append(number)
                try:
                    await self._leave[number].wait()
                finally:
                    self.inside.remove(number)
        except QueueFull:
            self.refused.append(number)


async def settle() -> None:
    """Let every task run until all of them wait."""
    for _ in range(10):
        await asyncio.sleep(0)


def run(body: Callable[[Visits], Coroutine[Any, Any, None]], slots: int, max_queued: int) -> None:
    async def main() -> None:
        visits = Visits(slots, max_queued)
        try:
            await body(visits)
        finally:
            for task in visits.tasks.values():
                task.cancel()
            await asyncio.gather(*visits.tasks.values(), return_exceptions=True)

    asyncio.run(main())


def test_takes_as_many_as_there_are_slots_and_seats_and_refuses_the_next_at_once() -> None:
    async def body(visits: Visits) -> None:
        for number in range(5):
            assert not visits.room.full
            await visits.come(number)
        assert visits.inside == [0, 1]
        assert visits.room.full
        await visits.come(5)
        assert visits.refused == [5]
        await visits.go(0)
        assert not visits.room.full
        assert visits.inside == [1, 2]

    run(body, slots=2, max_queued=3)


def test_who_gives_up_leaves_its_seat_or_its_slot() -> None:
    async def body(visits: Visits) -> None:
        for number in range(3):
            await visits.come(number)
        await visits.give_up(1)
        assert not visits.room.full
        await visits.give_up(0)
        assert visits.inside == [2]

    run(body, slots=1, max_queued=2)


def test_a_slot_is_given_back_after_an_error() -> None:
    async def main() -> None:
        room = RequestQueue(1, 1, lambda _: None)
        for _ in range(3):
            with contextlib.suppress(ZeroDivisionError):
                async with room.slot():
                    raise ZeroDivisionError
        assert not room.full

    asyncio.run(main())


@given(
    slots=st.integers(1, 3),
    max_queued=st.integers(1, 3),
    steps=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 9))),
)
def test_agrees_with_a_plain_queue(slots: int, max_queued: int, steps: list[tuple[int, int]]) -> None:
    """Whoever comes, goes or gives up: those inside and those refused are the ones of a list that is kept by hand."""

    async def body(visits: Visits) -> None:
        line: list[int] = []
        refused: list[int] = []
        for number, (what, which) in enumerate(steps):
            if what == 0:
                await visits.come(number)
                (line if len(line) < slots + max_queued else refused).append(number)
            elif line:
                inside = line[:slots]
                leaving = inside[which % len(inside)] if what == 1 else line[which % len(line)]
                await (visits.go(leaving) if what == 1 else visits.give_up(leaving))
                line.remove(leaving)
            assert visits.inside == line[:slots]
            assert visits.waiting == max(0, len(line) - slots)
            assert visits.refused == refused
            assert visits.room.full == (len(line) == slots + max_queued)

    run(body, slots, max_queued)
