"""The Ray Serve application: a light gateway that speaks HTTP, and renderers that hold the models.

``serve run serve.app:build config=RUN.yaml``, ``serve deploy`` and ``python -m serve`` start it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray import serve as ray_serve

from serve.access import Access
from serve.api import make_api
from serve.backend import RENDERER, RayBackend
from serve.batching import Batcher
from serve.draining import Drain
from serve.endpoint_config import DRAIN_GRACE_S, EndpointConfig
from serve.errors import Failure
from serve.keys import KeyRing
from serve.metrics import RELOADS, RequestMetrics
from serve.request_log import JsonLog, Observers
from serve.schema import Job, ModelInfo, RenderedImage
from serve.surroundings import find_listener, find_short_limits, require_purpose

if TYPE_CHECKING:
    # The gateway imports this module too and must stay small: only the renderer loads torch.
    from fastapi import FastAPI

    from serve.config import ServeConfig
    from serve.engine import Engine

logger = logging.getLogger(__name__)

GATEWAY_CPUS = 0.1
START_ATTEMPTS = 2
GATEWAY_SLOTS = 1000
"""Requests that a gateway handles at once: far over the renderers' queue, so that rejections come in the envelope."""
HEALTH_GRACE_S = 10.0
ROUTER = {"initial_backoff_s": 0.01, "backoff_multiplier": 2, "max_backoff_s": 0.04}
"""How long the gateway waits before it offers a request to a full renderer again: less than a batch takes, because with
Serve's default of half a second renderers would be idle under load."""
SURGE_PERCENT = 1
"""Serve rounds up: one replica more at a time."""


@ray_serve.deployment(name=RENDERER)
class Renderer:
    """Holds the models and renders batches of images."""

    def __init__(self, document: dict[str, Any], load: Callable[[ServeConfig], Engine]) -> None:
        """Load the releases that the config's pointers name, render once with each, and follow the pointers."""
        # Imported here for their weight: they bring torch, which the gateway's process does without.
        from serve.config import parse_config
        from serve.job_queue import JobQueue
        from serve.release_watcher import ReleaseWatcher

        self._config = parse_config(document)
        self._engine = load(self._config)
        self._engine.warm_up()
        endpoint = self._config.serve
        self._jobs = JobQueue(self._engine, Batcher(self._engine.render, endpoint.batch_size, endpoint.batch_wait_s))
        if endpoint.reload_poll_s is not None:
            watcher = ReleaseWatcher(self._config, self._engine, lambda m, o: RELOADS.add(model=m, outcome=o))
            watcher.start(endpoint.reload_poll_s)

    async def check_health(self) -> None:
        """Raise when the models do not render; Serve calls this at intervals and replaces a replica that fails."""
        endpoint = self._config.serve
        await self._engine.check_renders(endpoint.health_interval_s, endpoint.health_timeout_s)

    async def models(self) -> list[ModelInfo]:
        """Return the models that are served."""
        models: list[ModelInfo] = self._engine.models()
        return models

    async def generate(self, job: Job) -> list[RenderedImage] | Failure:
        """Return a job's images, or the failure that prevented them."""
        return await self._jobs.generate(job)

    async def abandon(self, job_id: str) -> int | None:
        """Take a job out of the queue; return how many of its images are not rendered, None for an unknown job."""
        return self._jobs.abandon(job_id)


@ray_serve.deployment(name="gateway")
@ray_serve.ingress()
class Gateway:
    """Speaks HTTP: checks keys and requests, forwards them to the renderers and puts every error into the envelope."""

    def __init__(self, renderer: Any, settings: dict[str, Any]) -> None:
        config = EndpointConfig.model_validate(settings)
        listener = find_listener()
        require_purpose(config, listener)
        for short in find_short_limits(config, listener, os.environ):
            logger.warning("%s", short)
        if config.keys is None:
            logger.warning("no API key is asked for: every client that reaches the endpoint may use it")
        access = Access(None if config.keys is None else KeyRing(config.keys))
        observers = Observers([JsonLog(), RequestMetrics()])
        self._drain = Drain()
        backend = RayBackend(renderer, config, access.settle_images)
        self._api = make_api(config, backend, access, observers, self._drain)

    async def drain(self, timeout_s: float) -> bool:
        """Let no more requests in, and return whether all that were in are answered within the time."""
        return await self._drain.wait(timeout_s)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Return the HTTP application; Serve calls this after construction."""
        return self._api


def build(args: dict[str, Any]) -> ray_serve.Application:
    """Return the Serve application.

    Args:
        args: The endpoint's part of a run's config (``serve``, ``model``, ``store``, ``taxonomy``); or
            ``{"config": FILE}``, the path of a run's YAML.

    Raises:
        ConfigError: A setting is wrong.
    """
    # Imported here for their weight: they bring torch, which the gateway's process does without.
    from serve.config import load_config, parse_config
    from serve.loading import load_engine

    config = load_config(Path(args["config"])) if "config" in args else parse_config(args)
    return application(config, load_engine)


def application(config: ServeConfig, load: Callable[[ServeConfig], Engine]) -> ray_serve.Application:
    """Return the Serve application of a config.

    Args:
        config: The endpoint's settings.
        load: Makes a renderer's engine from the config, in the renderer's process. A function of an importable module,
            as Ray sends it by name.
    """
    config = config.model_copy(update={"serve": _with_absolute_paths(config.serve), "store": config.store.absolute()})
    endpoint = config.serve
    refusal = {"status_code": 429, "retry_after_s": float(endpoint.retry_after_s)}
    renderer = Renderer.options(  # type: ignore[attr-defined]
        **_scale(endpoint),
        max_surge_percent=SURGE_PERCENT if endpoint.surge else 0,
        ray_actor_options={"num_cpus": endpoint.num_cpus, "num_gpus": endpoint.num_gpus},
        max_ongoing_requests=endpoint.renderer_slots,
        max_queued_requests=endpoint.max_queued_requests,
        backpressure_config=refusal,
        request_router_config=ROUTER,
        max_constructor_retry_count=START_ATTEMPTS,
        graceful_shutdown_timeout_s=endpoint.request_timeout_s,
        # A batch may delay the trial render, so the render's own limit must report first that the renderer hangs.
        health_check_timeout_s=endpoint.health_timeout_s + HEALTH_GRACE_S,
    ).bind(config.model_dump(mode="json"), load)
    return Gateway.options(  # type: ignore[attr-defined]
        max_surge_percent=SURGE_PERCENT,
        ray_actor_options={"num_cpus": GATEWAY_CPUS},
        max_ongoing_requests=GATEWAY_SLOTS,
        max_queued_requests=endpoint.max_queued_requests,
        backpressure_config=refusal,
        # It answers the requests that it has accepted before it stops.
        graceful_shutdown_timeout_s=endpoint.request_timeout_s + DRAIN_GRACE_S,
    ).bind(renderer, endpoint.model_dump(mode="json"))


def _with_absolute_paths(endpoint: EndpointConfig) -> EndpointConfig:
    """Return the settings for replicas, which run in another folder than the process that deploys them."""
    keys = None if endpoint.keys is None else endpoint.keys.absolute()
    trusted = tuple(path.absolute() for path in endpoint.trusted_keys)
    return endpoint.model_copy(update={"keys": keys, "trusted_keys": trusted})


def _scale(endpoint: EndpointConfig) -> dict[str, Any]:
    """Return the options for the number of renderers."""
    scaling = endpoint.autoscaling
    if scaling is None:
        return {"num_replicas": endpoint.replicas}
    limits: dict[str, Any] = {"min_replicas": scaling.min, "max_replicas": scaling.max}
    return {"autoscaling_config": {**limits, "target_ongoing_requests": scaling.target_ongoing}}
