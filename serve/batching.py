"""Dynamic batching: waiting tasks form a batch when the renderer is free for it.

Serve's own ``@serve.batch`` closes a batch some milliseconds after its first member arrived, even while the batch
before is still running. Under load these small batches queue up and keep each other small: 48 waiting requests were
rendered two by two. Here all tasks that arrive while a batch runs are available for the next one.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

Task = TypeVar("Task")
Outcome = TypeVar("Outcome")


@dataclass(frozen=True)
class _Waiting(Generic[Task, Outcome]):
    """A task in the queue, the future of its outcome, and what to call when its batch is cut."""

    task: Task
    future: asyncio.Future[Outcome]
    on_cut: Callable[[], None]


class Batcher(Generic[Task, Outcome]):
    """Runs a function on batches of at most ``size`` tasks, one batch at a time, in a thread."""

    def __init__(self, run: Callable[[Sequence[Task]], Sequence[Outcome]], size: int, wait_s: float) -> None:
        """Call ``run`` on each batch; one that is not full waits up to ``wait_s`` for each further task."""
        self._run, self._size, self._wait_s = run, size, wait_s
        self._waiting: deque[_Waiting[Task, Outcome]] = deque()
        self._arrived = asyncio.Event()
        self._worker: asyncio.Task[None] | None = None

    async def submit(self, task: Task, on_cut: Callable[[], None] = lambda: None) -> Outcome:
        """Return a task's outcome, or raise its batch's error; when the caller gives up, its task leaves the queue.

        Args:
            task: What to run.
            on_cut: Called when the task's batch is cut, from where on it is run whether its caller waits or not.
        """
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(task, future, on_cut))
        self._arrived.set()
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
                outcomes = await asyncio.to_thread(self._run, [each.task for each in batch])
            except Exception as error:
                for each in batch:
                    if not each.future.done():
                        each.future.set_exception(error)
                continue
            for each, outcome in zip(batch, outcomes, strict=True):
                if not each.future.done():
                    each.future.set_result(outcome)

    async def _gather(self) -> None:
        """Wait until a batch is full or no task has arrived for ``wait_s``.

        Requests that are sent at once arrive one by one, as fast as they are read. A fixed time would close the first
        batch after a few of them, and all others would wait a batch longer.
        """
        while len(self._waiting) < self._size:
            self._arrived.clear()
            try:
                await asyncio.wait_for(self._arrived.wait(), self._wait_s)
            except TimeoutError:
                return

    def _cut(self) -> list[_Waiting[Task, Outcome]]:
        """Take the next batch from the queue, without the tasks of callers that have given up."""
        batch: list[_Waiting[Task, Outcome]] = []
        while self._waiting and len(batch) < self._size:
            first = self._waiting.popleft()
            if not first.future.done():
                first.on_cut()
                batch.append(first)
        return batch
