"""Gathers what waits into batches, each cut when the renderer is free for it.

Serve's own ``@serve.batch`` cuts a batch some milliseconds after its first member came, whether or not the one before
is still at work. Under load the small batches it cuts then stand in line and keep each other small: 48 waiting requests
were rendered two by two. Here everything that has come while a batch was at work is there for the next one.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

Task = TypeVar("Task")
Outcome = TypeVar("Outcome")


class Batcher(Generic[Task, Outcome]):
    """Runs a function on batches of at most a size, one batch at a time, in a thread."""

    def __init__(self, run: Callable[[Sequence[Task]], Sequence[Outcome]], size: int, wait_s: float) -> None:
        """Run ``run``; a batch that is not full waits for others, ``wait_s`` for each."""
        self._run, self._size, self._wait_s = run, size, wait_s
        self._waiting: deque[tuple[Task, asyncio.Future[Outcome]]] = deque()
        self._came = asyncio.Event()
        self._worker: asyncio.Task[None] | None = None

    async def submit(self, task: Task) -> Outcome:
        """Return a task's outcome, or raise what its batch raised; a caller that gives up takes its task out."""
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._waiting.append((task, future))
        self._came.set()
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        return await future

    async def _work(self) -> None:
        """Run batches until nothing waits."""
        while self._waiting:
            await self._gather()
            batch = self._cut()
            if not batch:
                continue
            try:
                outcomes = await asyncio.to_thread(self._run, [task for task, _ in batch])
            except Exception as error:
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
                continue
            for (_, future), outcome in zip(batch, outcomes, strict=True):
                if not future.done():
                    future.set_result(outcome)

    async def _gather(self) -> None:
        """Wait until a batch is full or nothing has come for a while.

        A crowd that comes at once arrives one by one, as fast as its requests are read. A first batch of those few that
        a fixed time lets in would make all others wait a batch longer.
        """
        while len(self._waiting) < self._size:
            self._came.clear()
            try:
                await asyncio.wait_for(self._came.wait(), self._wait_s)
            except TimeoutError:
                return

    def _cut(self) -> list[tuple[Task, asyncio.Future[Outcome]]]:
        """Take the next batch from what waits, without the tasks whose callers have given up."""
        batch: list[tuple[Task, asyncio.Future[Outcome]]] = []
        while self._waiting and len(batch) < self._size:
            task, future = self._waiting.popleft()
            if not future.done():
                batch.append((task, future))
        return batch
