"""Calls from the gateway to the renderers through Ray Serve, with Serve's errors turned into the endpoint's own."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

from ray import serve as ray_serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException

from serve.endpoint_config import EndpointConfig
from serve.errors import INTERNAL, ApiError, Failure, busy, unavailable
from serve.metrics import WAITING
from serve.request_queue import QueueFull, RequestQueue
from serve.schema import Job, ModelInfo, RenderedImage

logger = logging.getLogger(__name__)

RENDERER = "renderer"
SETTLE_TIMEOUT_S = 30.0
"""The longest wait for the renderers' word on an abandoned job; without it the job counts as rendered."""
MODELS_KEPT_S = 5.0
HEALTH_KEPT_S = 1.0
"""How long answers that need no slot are cached, so that frequent requests cost renderers and controller nothing."""


class RayBackend:
    """Renders on the renderers' replicas."""

    def __init__(
        self, renderer: Any, config: EndpointConfig, settle: Callable[[str, int], None] = lambda _job, _unrendered: None
    ) -> None:
        """Render on a deployment; ``settle`` gets the id of each abandoned job, and how much of it is not rendered."""
        self._renderer = renderer
        self._settle = settle
        self._settling: set[asyncio.Task[None]] = set()
        self._config = config
        self._queue = RequestQueue(config.slots, config.max_queued_requests, WAITING.set)
        self._models: list[ModelInfo] = []
        self._models_until = float("-inf")
        self._healthy = False
        self._healthy_until = float("-inf")

    def require_capacity(self) -> None:
        """Raise ApiError 429 when the queue is full."""
        if self._queue.full:
            raise busy(self._config.retry_after_s)

    async def generate(self, job: Job) -> list[RenderedImage]:
        """Return a job's images in order; raise ApiError."""
        sent = False
        try:
            async with self._queue.slot():
                sent = True
                outcome = await self._call(self._renderer.generate.remote(job))
        except QueueFull:
            raise busy(self._config.retry_after_s) from None
        except asyncio.CancelledError:
            if sent:
                task = asyncio.create_task(self._settle_sent(job))
                self._settling.add(task)
                task.add_done_callback(self._settling.discard)
            else:
                self._settle(job.id, job.n)
            raise
        if isinstance(outcome, Failure):
            raise ApiError(outcome)
        images: list[RenderedImage] = outcome
        return images

    async def _settle_sent(self, job: Job) -> None:
        """Take an abandoned job from the renderers, and settle it by what they say of it.

        Which of them has it is not known here, so all are asked. Serve's own cancellation, which frees the job's place,
        does not tell what was rendered before it came.
        """
        try:
            response = self._renderer.broadcast("abandon", job.id)
            answers = await response.results_async(timeout_s=SETTLE_TIMEOUT_S, return_exceptions=True)
        except Exception:
            logger.exception("the renderers do not say how much of the abandoned job %s they rendered", job.id)
            return
        known = [answer for answer in answers if isinstance(answer, int)]
        if known or all(answer is None for answer in answers):
            self._settle(job.id, known[0] if known else job.n)

    async def models(self) -> list[ModelInfo]:
        """Return the models that are served; the answer is seconds old, or older while all renderers are busy."""
        if time.monotonic() > self._models_until:
            try:
                self._models = await self._call(self._renderer.models.remote())
                self._models_until = time.monotonic() + MODELS_KEPT_S
            except ApiError:
                if not self._models:
                    raise
        return self._models

    async def healthy(self) -> bool:
        """Return whether Serve's controller has a running renderer; this does not wait in the renderers' queue."""
        if time.monotonic() > self._healthy_until:
            name = ray_serve.get_replica_context().app_name
            status = await asyncio.to_thread(ray_serve.status)
            application = status.applications.get(name)
            renderer = None if application is None else application.deployments.get(RENDERER)
            self._healthy = renderer is not None and renderer.replica_states.get("RUNNING", 0) > 0
            self._healthy_until = time.monotonic() + HEALTH_KEPT_S
        return self._healthy

    async def _call(self, response: Any) -> Any:
        """Wait for a renderer's answer; when the caller gives up, its images leave the queue."""
        try:
            return await response
        except asyncio.CancelledError:
            response.cancel()
            raise
        except BackPressureError:
            raise busy(self._config.retry_after_s) from None
        except (DeploymentUnavailableError, RayActorError):
            raise unavailable(self._config.retry_after_s) from None
        except RayServeException as error:
            raise ApiError(INTERNAL) from error
