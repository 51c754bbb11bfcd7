"""Calls from the gateway to the renderers through Ray Serve, with Serve's errors turned into the endpoint's own."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from ray import serve as ray_serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException

from serve.endpoint_config import EndpointConfig
from serve.errors import INTERNAL, ApiError, Failure, busy, unavailable
from serve.metrics import WAITING
from serve.request_queue import QueueFull, RequestQueue
from serve.schema import Job, ModelInfo, RenderedImage

RENDERER = "renderer"
MODELS_KEPT_S = 5.0
HEALTH_KEPT_S = 1.0
"""How long answers that need no slot are cached, so that frequent requests cost renderers and controller nothing."""


class RayBackend:
    """Renders on the renderers' replicas."""

    def __init__(self, renderer: Any, config: EndpointConfig) -> None:
        self._renderer = renderer
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
        try:
            async with self._queue.slot():
                outcome = await self._call(self._renderer.generate.remote(job))
        except QueueFull:
            raise busy(self._config.retry_after_s) from None
        if isinstance(outcome, Failure):
            raise ApiError(outcome)
        images: list[RenderedImage] = outcome
        return images

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
