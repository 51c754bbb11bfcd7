"""The Ray Serve application: a light gateway that speaks HTTP, and renderers that hold the models.

``serve run serve.app:build config=jobs/configs/emoji.yaml``, ``serve build`` and ``serve.up`` start it.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray import serve as ray_serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException

from cluster.endpoint import EndpointConfig
from serve.api import make_api
from serve.errors import INTERNAL, ApiError, Failure, busy, unavailable
from serve.schema import Job, ModelInfo, RenderedImage

if TYPE_CHECKING:
    # The gateway imports this module too and must stay small: torch comes only with the renderer.
    from fastapi import FastAPI

    from serve.engine import ImageTask

RENDERER = "renderer"
GATEWAY_CPUS = 0.1
START_ATTEMPTS = 2
GATEWAY_SLOTS = 1000
"""Requests that a gateway handles at once: far over the renderers' queue, so that its refusals come in the envelope."""


@ray_serve.deployment(name=RENDERER)
class Renderer:
    """Holds the models and renders batches of images."""

    def __init__(self, document: dict[str, Any]) -> None:
        """Load the release that the config's pointer names and render once with it."""
        # Imported here so that the gateway, which imports this module, does without torch.
        from serve.config import parse_config
        from serve.loading import load_engine

        config = parse_config(document)
        self._engine = load_engine(config)
        self._engine.warm_up()
        self._render.set_max_batch_size(config.serve.batch_size)
        self._render.set_batch_wait_timeout_s(config.serve.batch_wait_s)

    async def models(self) -> list[ModelInfo]:
        """Return what is served."""
        return self._engine.models()

    async def generate(self, job: Job) -> list[RenderedImage] | Failure:
        """Return a job's images, or why there are none."""
        try:
            tasks = self._engine.admit(job)
        except ApiError as error:
            return error.failure
        outcomes: list[RenderedImage | Failure] = await asyncio.gather(*(self._render(task) for task in tasks))
        images = [outcome for outcome in outcomes if isinstance(outcome, RenderedImage)]
        return images if len(images) == len(outcomes) else next(o for o in outcomes if isinstance(o, Failure))

    @ray_serve.batch(max_batch_size=1)  # type: ignore[untyped-decorator]
    async def _render(self, tasks: list[ImageTask]) -> list[RenderedImage | Failure]:
        """Render the images that wait, whatever requests they come from, off the event loop."""
        return await asyncio.to_thread(self._engine.render, tasks)


class RayBackend:
    """The gateway's way to the renderers."""

    def __init__(self, renderer: Any, config: EndpointConfig) -> None:
        """Keep the renderers' deployment handle."""
        self._renderer = renderer
        self._config = config
        self._models: list[ModelInfo] | None = None

    async def generate(self, job: Job) -> list[RenderedImage]:
        """Return a job's images in order; raise ApiError."""
        outcome = await self._call(self._renderer.generate.remote(job))
        if isinstance(outcome, Failure):
            raise ApiError(outcome)
        images: list[RenderedImage] = outcome
        return images

    async def models(self) -> list[ModelInfo]:
        """Return what is served; asked of a renderer once, as its models do not change."""
        if self._models is None:
            self._models = await self._call(self._renderer.models.remote())
        return self._models

    async def healthy(self) -> bool:
        """Say whether Serve's controller has a renderer running; asks it, so as not to wait in the renderers' queue."""
        name = ray_serve.get_replica_context().app_name
        status = await asyncio.to_thread(ray_serve.status)
        application = status.applications.get(name)
        renderer = None if application is None else application.deployments.get(RENDERER)
        return renderer is not None and renderer.replica_states.get("RUNNING", 0) > 0

    async def _call(self, response: Any) -> Any:
        """Wait for a renderer's answer; a caller that gives up takes its images out of the queue."""
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


@ray_serve.deployment(name="gateway")
@ray_serve.ingress()
class Gateway:
    """Speaks HTTP: checks requests, passes them to the renderers and puts every refusal into the envelope."""

    def __init__(self, renderer: Any, settings: dict[str, Any]) -> None:
        """Keep the renderers' handle and the endpoint's settings."""
        config = EndpointConfig.model_validate(settings)
        self._api = make_api(config, RayBackend(renderer, config))

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Return the HTTP application (asked for by Serve after construction)."""
        return self._api


def build(args: dict[str, Any]) -> Any:
    """Return the Serve application.

    Args:
        args: The endpoint's part of a run's config (``serve``, ``model``, ``store``); or ``{"config": FILE}``, the
            path of a run's YAML.

    Raises:
        ConfigError: A setting is wrong.
    """
    from serve.config import load_config, parse_config

    config = load_config(Path(args["config"])) if "config" in args else parse_config(args)
    endpoint = config.serve
    refusal = {"status_code": 429, "retry_after_s": float(endpoint.retry_after_s)}
    renderer = Renderer.options(  # type: ignore[attr-defined]
        num_replicas=endpoint.replicas,
        ray_actor_options={"num_cpus": endpoint.num_cpus, "num_gpus": endpoint.num_gpus},
        # One batch renders while the next one gathers; more would only wait where no bound counts them.
        max_ongoing_requests=2 * endpoint.batch_size,
        max_queued_requests=endpoint.max_queued_requests,
        backpressure_config=refusal,
        max_constructor_retry_count=START_ATTEMPTS,
        graceful_shutdown_timeout_s=endpoint.request_timeout_s,
    ).bind(config.model_dump(mode="json"))
    return Gateway.options(  # type: ignore[attr-defined]
        ray_actor_options={"num_cpus": GATEWAY_CPUS},
        max_ongoing_requests=GATEWAY_SLOTS,
        max_queued_requests=endpoint.max_queued_requests,
        backpressure_config=refusal,
    ).bind(renderer, endpoint.model_dump(mode="json"))
