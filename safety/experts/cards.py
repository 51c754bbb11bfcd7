"""Presets by card: the fastest settings of training and rendering that fit, computed from a model's own sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from pydantic import Field
from torch import nn

from safety.base import Config
from safety.errors import ConfigError
from safety.experts.config import ExpertConfig
from safety.experts.memory import (
    GIB,
    RESERVE,
    StepMemory,
    choose_plan,
    largest_linear,
    latent_of,
    latents_of,
    load_skeleton,
    measure_step,
    shapes_of,
    weight_bytes,
)
from safety.experts.passes import PassPlan
from safety.experts.tracing import trace_call
from safety.families.family import ModelConfig, ModelFamily
from safety.families.model_config import Quantize
from safety.rendering import RenderConfig

CARDS = (8, 16, 24, 48, 80)
"""Cards in GB, as they are sold."""
USABLE, CONTEXT = 0.97, int(0.6 * GIB)
"""The share of a card's size in GiB that it reports, and what CUDA's context and libraries take of it."""
QUANTISED: tuple[Quantize, ...] = ("none", "int8", "nf4")


class RenderMemory(Config):
    """The bytes that rendering needs: weights, and what a batch adds."""

    weights: int
    latent: int = Field(description="per latent that the denoiser predicts; guidance makes two of an image")
    image: int = Field(description="per image that is decoded; the VAE decodes one at a time where images are large")

    def peak(self, batch: int) -> int:
        """Return the most bytes at once while a batch of images is rendered with guidance."""
        return self.weights + max(2 * batch * self.latent, self.image)

    def batch(self, room: int) -> int:
        """Return the largest batch that fits; 0 where none does."""
        if self.peak(1) > room:
            return 0
        return max(1, (room - self.weights) // (2 * self.latent))


class CardPreset(Config):
    """The settings of one card."""

    card: int = Field(description="GB")
    quantize: Quantize
    plan: PassPlan | None = Field(description="how a step goes through the denoiser; none: it does not fit")
    step: int | None = Field(description="bytes of a step by the plan")
    render_batch: int = Field(description="images rendered at once; 0: not even one fits")


def room_of(card: int) -> int:
    """Return the bytes that a card of so many GB leaves to training or rendering."""
    return int(card * GIB * USABLE) - CONTEXT


def measure_render(model: ModelConfig, render: RenderConfig, dtype: torch.dtype) -> RenderMemory:
    """Return the memory of rendering, from the settings in the model's folder alone; raises as ``measure_step``."""
    family = load_skeleton(model, dtype, "all")
    prompt = shapes_of(load_skeleton(model, dtype, "text").unconditional())
    pipeline = getattr(family, "pipeline", None)
    networks = [part for part in getattr(pipeline, "components", {}).values() if isinstance(part, nn.Module)]
    weights = sum(weight_bytes(part, model.quantize if part is family.denoiser else "none") for part in networks)
    shape = family.latent_shape(render.height or family.default_size, render.width or family.default_size)
    predicted = trace_call(networks, lambda: _predict(family, shape, prompt))
    # The networks are fake now, and stay so.
    again = load_skeleton(model, dtype, "all")
    parts = [part for part in again.pipeline.components.values() if isinstance(part, nn.Module)]  # type: ignore[attr-defined]
    decoded = trace_call(parts, lambda: again.decode_latents(torch.zeros(1, *shape)))
    return RenderMemory(weights=weights, latent=-(-predicted // 2), image=decoded)


def _predict(family: ModelFamily, shape: tuple[int, int, int], prompt: Mapping[str, tuple[int, ...]]) -> object:
    conditioning = {key: torch.zeros(2, *sizes) for key, sizes in prompt.items()}
    return family.predict(torch.zeros(2, *shape), torch.zeros(2, dtype=torch.int64), conditioning)


def presets(
    model: ModelConfig, expert: ExpertConfig, render: RenderConfig, cards: Sequence[int] = CARDS
) -> list[CardPreset]:
    """Return each card's preset for a model in bf16: quantised no further than it takes for a step to fit.

    Training is on images of the size that is rendered, as in a run.
    """
    steps: dict[Quantize, StepMemory] = {}
    renders: dict[Quantize, RenderMemory] = {}
    on_card = model.model_copy(update={"device": "cuda", "dtype": "bfloat16", "quantize": "none"})
    plain = steps["none"] = measure_step(on_card, expert, latent_of(on_card, render.height, render.width))
    drawn = renders["none"] = measure_render(on_card, render, torch.bfloat16)
    denoiser = load_skeleton(on_card, torch.bfloat16, "denoiser").denoiser
    whole = weight_bytes(denoiser)
    for quantize in QUANTISED[1:]:
        saved = whole - weight_bytes(denoiser, quantize)
        steps[quantize] = plain.model_copy(update={"base": plain.base - saved + largest_linear(denoiser)})
        renders[quantize] = drawn.model_copy(update={"weights": drawn.weights - saved})
    return [card_preset(card, steps, renders, expert) for card in cards]


def card_preset(
    card: int, steps: Mapping[Quantize, StepMemory], renders: Mapping[Quantize, RenderMemory], expert: ExpertConfig
) -> CardPreset:
    """Return one card's preset; the first quantisation by which a step fits."""
    latents, room = latents_of(expert), room_of(card)
    for quantize, memory in steps.items():
        try:
            plan = choose_plan(memory, expert, latents, room)
        except ConfigError:
            continue
        peak = memory.peak(plan, latents)
        batch = renders[quantize].batch(int(room * (1 - RESERVE)))
        return CardPreset(card=card, quantize=quantize, plan=plan, step=peak, render_batch=batch)
    last = list(renders)[-1]
    return CardPreset(
        card=card, quantize=last, plan=None, step=None, render_batch=renders[last].batch(int(room * (1 - RESERVE)))
    )
