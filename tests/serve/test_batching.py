"""How batches are cut: full ones under load, none with what nobody waits for, and a failure that is its own."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence

import pytest

from serve.batching import Batcher


class Worker:
    """Doubles numbers, a twentieth of a second a batch; fails on a batch with a negative one."""

    def __init__(self, batch_s: float = 0.05) -> None:
        self.batches: list[list[int]] = []
        self._batch_s, self._busy = batch_s, threading.Lock()

    def __call__(self, tasks: Sequence[int]) -> list[int]:
        assert self._busy.acquire(blocking=False), "one batch at a time"
        try:
            self.batches.append(list(tasks))
            time.sleep(self._batch_s)
            if min(tasks) < 0:
                raise RuntimeError("out of memory")
            return [2 * task for task in tasks]
        finally:
            self._busy.release()


def test_clients_that_ask_one_after_another_fill_the_batches() -> None:
    worker = Worker()

    async def load() -> list[int]:
        batcher = Batcher(worker, size=8, wait_s=0.01)

        async def client(first: int) -> list[int]:
            await asyncio.sleep(0.004 * first)  # they come one by one, as over a network
            return [await batcher.submit(100 * first + i) for i in range(10)]

        return [outcome for each in await asyncio.gather(*(client(i) for i in range(16))) for outcome in each]

    outcomes = asyncio.run(load())
    assert sorted(outcomes) == sorted(2 * (100 * first + i) for first in range(16) for i in range(10))
    steady = worker.batches[2:-2]
    assert sum(len(batch) for batch in steady) / len(steady) > 7, "full, or nearly"
    assert max(len(batch) for batch in worker.batches) == 8


def test_a_crowd_that_arrives_one_by_one_is_one_batch() -> None:
    worker = Worker(0.0)

    async def crowd() -> None:
        batcher = Batcher(worker, size=8, wait_s=0.3)

        async def client(number: int) -> None:
            await asyncio.sleep(0.1 * number)
            await batcher.submit(number)

        await asyncio.gather(*(client(number) for number in range(8)))

    asyncio.run(crowd())
    assert [len(batch) for batch in worker.batches] == [8], "the last comes 0.7 s after the first"


def test_a_full_batch_does_not_wait() -> None:
    async def full() -> list[int]:
        batcher = Batcher(Worker(0.0), size=4, wait_s=1000.0)
        return await asyncio.wait_for(asyncio.gather(*map(batcher.submit, range(4))), 30)

    assert asyncio.run(full()) == [0, 2, 4, 6]


def test_one_alone_waits_no_longer_than_it_must() -> None:
    async def alone() -> float:
        started = time.perf_counter()
        assert await Batcher(Worker(0.0), size=8, wait_s=0.02).submit(4) == 8
        return time.perf_counter() - started

    assert 0.02 <= asyncio.run(alone()) < 1.0


def test_what_nobody_waits_for_is_not_done() -> None:
    worker = Worker()

    async def leave() -> None:
        batcher = Batcher(worker, size=1, wait_s=0.0)
        first, second, third = (asyncio.create_task(batcher.submit(i)) for i in (1, 2, 3))
        await asyncio.sleep(0.01)
        second.cancel()
        assert (await first, await third) == (2, 6)

    asyncio.run(leave())
    assert worker.batches == [[1], [3]]


def test_a_batch_that_fails_takes_no_other_with_it() -> None:
    worker = Worker()

    async def fail() -> None:
        batcher = Batcher(worker, size=2, wait_s=0.01)
        outcomes = await asyncio.gather(*(batcher.submit(i) for i in (1, -1, 3, 4)), return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [RuntimeError, RuntimeError, int, int]
        with pytest.raises(RuntimeError, match="out of memory"):
            await batcher.submit(-5)
        assert await batcher.submit(5) == 10

    asyncio.run(fail())
