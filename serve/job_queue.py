"""A renderer's jobs: their images go through the batcher, and those of abandoned jobs leave it."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Protocol

from serve.batching import Batcher
from serve.engine import ImageTask
from serve.errors import INTERNAL, ApiError, Failure
from serve.schema import Job, RenderedImage

MAX_KNOWN_JOBS = 4096
"""Jobs whose end is remembered, for callers that give up at the same time; the oldest is forgotten first."""


class Admission(Protocol):
    """The part of an engine that splits a job into its images."""

    def admit(self, job: Job) -> list[ImageTask]:
        """Return a job's images; raise ApiError when it may or can not be rendered."""


@dataclass
class JobState:
    """The progress of one job."""

    images: int = 0
    cut: int = 0
    """Images whose batch has been cut: they are rendered, whether the caller waits or not."""
    abandoned: bool = False
    tasks: list[asyncio.Task[RenderedImage]] = field(default_factory=list)

    def count_cut(self) -> None:
        """Count an image whose batch is cut."""
        self.cut += 1


class RenderFailed(Exception):
    """An image of a job failed, and so the job."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure)
        self.failure = failure


class JobQueue:
    """Runs jobs through a batcher, and keeps count of how much of each is rendered."""

    def __init__(self, engine: Admission, batcher: Batcher[ImageTask, RenderedImage | Failure]) -> None:
        self._engine, self._batcher = engine, batcher
        self._jobs: OrderedDict[str, JobState] = OrderedDict()

    async def generate(self, job: Job) -> list[RenderedImage] | Failure:
        """Return a job's images in order, or the failure that prevented them; with one image lost, the rest is left."""
        try:
            images = self._engine.admit(job)
        except ApiError as error:
            return error.failure
        state = self._state(job.id)
        if state.abandoned:
            return INTERNAL
        state.images = len(images)
        failures: list[Failure] = []
        try:
            async with asyncio.TaskGroup() as group:
                state.tasks = [group.create_task(self._image(image, state)) for image in images]
        except* RenderFailed as failed:
            failures = [error.failure for error in failed.exceptions if isinstance(error, RenderFailed)]
        finally:
            finished, state.tasks = state.tasks, []
        return failures[0] if failures else [task.result() for task in finished]

    def abandon(self, job_id: str) -> int | None:
        """Take a job whose caller has given up out of the queue.

        Returns:
            How many of its images are not rendered; None when the job is not known. It is refused if it comes later.
        """
        known = job_id in self._jobs
        state = self._state(job_id)
        state.abandoned = True
        for task in state.tasks:
            task.cancel()
        return state.images - state.cut if known else None

    async def _image(self, image: ImageTask, state: JobState) -> RenderedImage:
        outcome = await self._batcher.submit(image, state.count_cut)
        if isinstance(outcome, Failure):
            raise RenderFailed(outcome)
        return outcome

    def _state(self, job_id: str) -> JobState:
        """Return the state of a job, a new one when it is not known."""
        state = self._jobs.setdefault(job_id, JobState()) if job_id else JobState()
        while len(self._jobs) > MAX_KNOWN_JOBS:
            self._jobs.popitem(last=False)
        return state
