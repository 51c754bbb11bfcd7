"""Rendering of prompts, shared by generation, search, evaluation and the endpoint.

An image is a function of (model, prompt, seed, config) and of the batch it is rendered in; batches are cut from
the call's own list, so equal calls give equal pixels wherever they run.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch
from pydantic import Field
from torch import Tensor

from safety.base import Config
from safety.images import to_uint8
from safety.precision import compute_dtype
from safety.samplers import SamplerName
from safety.seeds import derive_seed

if TYPE_CHECKING:  # Configs name RenderConfig in processes that never load a model.
    from safety.families import ModelFamily

SEED_RANGE = 2**32


class RenderConfig(Config):
    """Sampling settings."""

    steps: int = Field(6, gt=0, le=1000, description="sampling steps")
    sampler: SamplerName | None = Field(
        None,
        description="of models that predict noise: ddim, dpm++ (2M), euler or unipc; none: the family's own, DDIM, or "
        "Euler's steps where the model matches flows. The endpoint's and stock pipelines' images are by the latter",
    )
    guidance: float = Field(2.5, ge=0, description="classifier-free guidance scale; at most 1 switches it off")
    height: int | None = Field(None, gt=0, description="pixels; None is the model's own size")
    width: int | None = Field(None, gt=0, description="pixels; None is the model's own size")
    batch: int = Field(16, gt=0, description="images rendered at once; part of what an image depends on")


def row_seed(seed: int, row_id: str) -> int:
    """Return the 32-bit seed of a row's initial noise; any tool and any JSON reader accepts 32 bits."""
    return derive_seed(seed, row_id, "noise") % SEED_RANGE


def initial_noise(model: ModelFamily, seed: int, height: int | None = None, width: int | None = None) -> Tensor:
    """Return initial noise [1, C, h, w] as the stock pipeline draws it for one image from a CPU generator.

    It is drawn in the denoiser's own dtype, because a half-precision draw is not a rounded fp32 draw.
    """
    shape = model.latent_shape(height or model.default_size, width or model.default_size)
    dtype = compute_dtype(model.denoiser)
    return torch.randn((1, *shape), generator=torch.Generator("cpu").manual_seed(seed), dtype=dtype)


def render(
    model: ModelFamily,
    prompts: Sequence[str],
    seeds: Sequence[int],
    config: RenderConfig,
    negative: str | None = None,
) -> Tensor:
    """Return images uint8 [B, 3, H, W] of prompts, one seed each; a pair's two prompts share one.

    Args:
        model: The model, with or without experts.
        prompts: At least one prompt, each within the model's token limit.
        seeds: One seed per prompt, in [0, 2^64).
        config: Steps, guidance, size and batch.
        negative: A negative prompt for all; None is the empty one.

    Raises:
        PromptError: A prompt has more tokens than the model reads.
        ValueError: There is no prompt, or not one seed per prompt.
        ConfigError: Height or width is not a multiple of the model's, or it has no such sampler.
    """
    if not prompts or len(prompts) != len(seeds):
        raise ValueError(f"{len(prompts)} prompts and {len(seeds)} seeds: give at least one, and one seed each")
    against = None if negative is None else model.encode_text([negative])
    images = []
    for start in range(0, len(prompts), config.batch):
        part = slice(start, start + config.batch)
        noise = torch.cat([initial_noise(model, seed, config.height, config.width) for seed in seeds[part]])
        conditioning = model.encode_text(prompts[part])
        with nullcontext() if config.sampler is None else model.sampling(config.sampler):
            images.append(
                model.sample(conditioning, noise, steps=config.steps, guidance=config.guidance, negative=against)
            )
    return to_uint8(torch.cat(images)).cpu()
