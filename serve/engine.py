"""Renders images for the endpoint: plain Python over the model families, without Ray."""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

from PIL.Image import Resampling
from torch import Tensor

from safety.errors import ConfigError, PromptError
from safety.families import ModelFamily
from safety.images import encode_png
from safety.prompts.guard import MinorSafetyFilter
from safety.rendering import RenderConfig, render
from serve.endpoint_config import EndpointConfig
from serve.errors import INTERNAL, Failure, invalid, model_not_found
from serve.output_judge import OutputJudge
from serve.schema import Job, ModelInfo, RenderedImage

logger = logging.getLogger(__name__)

RESAMPLING = {"lanczos": Resampling.LANCZOS, "nearest": Resampling.NEAREST}


@dataclass(frozen=True)
class ServedModel:
    """A loaded model under the name that requests use; an aligned one has its LoRA fused."""

    info: ModelInfo
    family: ModelFamily


@dataclass(frozen=True)
class RenderPlan:
    """The settings that all images of one batch share."""

    model: str
    release: str | None
    steps: int
    guidance: float
    width: int
    height: int
    negative: str | None = None


@dataclass(frozen=True)
class ImageTask:
    """One image to render. Batches consist of single images, so that no image's seed depends on its batch.

    ``size`` is what the image is scaled to, where that is not what is drawn.

    It keeps the model that was served when its job was admitted, so that one release renders all images of a job.
    """

    prompt: str
    seed: int
    plan: RenderPlan
    served: ServedModel = field(compare=False, repr=False)
    size: tuple[int, int] | None = None


class Engine:
    """Holds the models, admits jobs and renders batches of their images."""

    def __init__(
        self, models: Mapping[str, ServedModel], config: EndpointConfig, judge: OutputJudge | None = None
    ) -> None:
        """Serve ``models`` by name within ``config``'s limits; ``judge``, if any, scores their images."""
        self._models = dict(models)
        self._config = config
        self._judge = judge
        self._last_render = float("-inf")
        self._guard = MinorSafetyFilter()
        # A pipeline's scheduler keeps state between steps, so two renders must not interleave.
        self._lock = threading.Lock()

    def models(self) -> list[ModelInfo]:
        """Return the models that are served."""
        return [model.info for model in self._models.values()]

    def release(self, name: str) -> str | None:
        """Return the id of the release that is served under a name."""
        return self._models[name].info.release

    def replace(self, name: str, served: ServedModel) -> None:
        """Serve another model under a name; jobs that were admitted before keep the old one."""
        self._models = {**self._models, name: served}

    def idle_s(self) -> float:
        """Return the seconds since images were last rendered."""
        return time.monotonic() - self._last_render

    def warm_up(self) -> None:
        """Render one image with each model; raise RuntimeError when a model cannot, before a request would find out."""
        for name in tuple(self._models):
            [image] = self.render(self.admit(Job("a picture", name, 1, 0, 1, self._config.default_guidance)))
            if isinstance(image, Failure):
                raise RuntimeError(f"the model {name!r} cannot render: {image.message}")

    async def check_renders(self, interval_s: float, timeout_s: float) -> None:
        """Check the engine's health: render with each model, unless it has rendered within the last ``interval_s``.

        Raises:
            RuntimeError: A model cannot render.
            TimeoutError: It takes longer than ``timeout_s``, for example behind a batch that hangs.
        """
        if self.idle_s() < interval_s:
            return
        async with asyncio.timeout(timeout_s):
            await asyncio.to_thread(self.warm_up)

    def admit(self, job: Job) -> list[ImageTask]:
        """Split a job into its images; raise ApiError when no served model may or can render it."""
        served = self._models.get(job.model)
        if served is None:
            raise model_not_found(list(self._models))
        refusal = self._guard.check(job.prompt, job.negative or "")
        if refusal is not None:
            raise invalid("the prompt is against the content policy", param="prompt", code="content_policy_violation")
        family = served.family
        asked = (job.width or family.default_size, job.height or family.default_size)
        width, height = self._drawn_size(family, *asked)
        for name, text in (("prompt", job.prompt), ("negative_prompt", job.negative or "")):
            try:
                family.check_prompt(text)
            except PromptError as error:
                raise invalid(f"{error.message}; {error.fix}", param=name, code="prompt_too_long") from None
        plan = RenderPlan(job.model, served.info.release, job.steps, job.guidance, width, height, job.negative)
        size = None if asked == (width, height) else asked
        return [ImageTask(job.prompt, job.seed + index, plan, served, size) for index in range(job.n)]

    def render(self, tasks: Sequence[ImageTask]) -> list[RenderedImage | Failure]:
        """Render images in the order given; those of one plan run as one batch, and fail as one.

        Each image starts from its own seed's noise, so that the other images of its batch cannot change it but by
        rounding: the processor's routines depend on a batch's size. ``exact_batch`` takes that away too.
        """
        groups: dict[RenderPlan, list[int]] = defaultdict(list)
        for index, task in enumerate(tasks):
            groups[task.plan].append(index)
        outcomes: list[RenderedImage | Failure] = [INTERNAL] * len(tasks)
        for plan, members in groups.items():
            try:
                images = self._render_group(plan, [tasks[i] for i in members])
            except Exception:
                logger.exception("rendering %d images with %s failed", len(members), plan)
                continue
            for index, image in zip(members, images, strict=True):
                outcomes[index] = image
        return outcomes

    def _render_group(self, plan: RenderPlan, tasks: Sequence[ImageTask]) -> list[RenderedImage]:
        exact = self._config.exact_batch
        config = RenderConfig(
            steps=plan.steps,
            guidance=plan.guidance,
            height=plan.height,
            width=plan.width,
            batch=exact or self._config.batch_size,
        )
        # With ``exact_batch`` the last batch is filled up, by images that are thrown away.
        filled = [*tasks, *[tasks[-1]] * (-len(tasks) % (exact or 1))]
        with self._lock:
            # The tasks of a plan share name and release, and so the model.
            images = render(
                tasks[0].served.family,
                [task.prompt for task in filled],
                [task.seed for task in filled],
                config,
                plan.negative,
            )[: len(tasks)]
        self._last_render = time.monotonic()
        finished = [
            RenderedImage(
                png=self._encode(image, task),
                seed=task.seed,
                width=task.size[0] if task.size else plan.width,
                height=task.size[1] if task.size else plan.height,
                release=plan.release,
                batch=len(tasks),
            )
            for task, image in zip(tasks, images, strict=True)
        ]
        return finished if self._judge is None else self._judged(self._judge, finished, images)

    def _encode(self, image: Tensor, task: ImageTask) -> bytes:
        """Return an image as a PNG that names model, release and seed, and the size that was drawn if it is scaled."""
        plan = task.plan
        metadata = {"model": plan.model, "release": plan.release or "none", "seed": str(task.seed)}
        if task.size is not None:
            metadata["drawn"] = f"{plan.width}x{plan.height}"
        return encode_png(image, metadata, task.size, RESAMPLING[self._config.resize or "lanczos"])

    def _judged(self, judge: OutputJudge, finished: Sequence[RenderedImage], images: Tensor) -> list[RenderedImage]:
        return [
            replace(image, judge=judge.identity, verdict=verdict, png=None if judge.withholds(verdict) else image.png)
            for image, verdict in zip(finished, judge.judge_images(images), strict=True)
        ]

    def _drawn_size(self, family: ModelFamily, width: int, height: int) -> tuple[int, int]:
        """Return the sides to draw for an image of the sides asked for; raise ApiError when it cannot be had."""
        step, side = family.size_multiple, family.default_size
        least = self._config.min_side or max(step, side // 2)
        most = self._config.max_side or side * 2
        if least <= min(width, height) and max(width, height) <= most:
            with suppress(ConfigError):
                family.latent_shape(height, width)
                return width, height
        if self._config.resize is None:
            raise invalid(
                f"size must have sides from {least} to {most} pixels that are multiples of {step}; "
                f"'auto' is the model's own, {side}x{side}",
                param="size",
            )
        # The model's own number of pixels, in the shape that is asked for.
        scale = side / math.sqrt(width * height)
        lowest, highest = -(-least // step) * step, most // step * step
        drawn = [min(max(round(asked * scale / step) * step, lowest), highest) for asked in (width, height)]
        return drawn[0], drawn[1]
