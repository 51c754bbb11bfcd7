"""What the families of flow-matching models share: noise levels, the velocity, prompts.

A latent x and noise e are mixed along a straight line, and the network predicts its direction, the velocity:

    x_t = (1 - sigma) x + sigma e        v = dx_t / dsigma = e - x

The timestep is an index of the scheduler's own table of noise levels, turned round so that a larger one is noisier:
sigma(i) = shift((i + 1) / N), with the fixed shift of the scheduler's settings (3 for Stable Diffusion 3), and none
where the shift depends on the image's size (FLUX.1).

Timesteps are drawn evenly and all levels weigh the same, for the objectives read plain squared errors of the velocity. That is
what diffusers' train_dreambooth_lora_flux.py does by default (``--weighting_scheme none``). Its train_dreambooth_lora_sd3.py
reads the same table, but visits the middle more often (``logit_normal``) and measures the error of x
(``--precondition_outputs 1``), sigma^2 times that of the velocity, which weighs the noisy levels more. We leave both
out: which levels are trained on is ``train.expert.timesteps``, and a weight within DPO's sigmoid would be another beta for
each level.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from safety.errors import ConfigError
from safety.families.family import Conditioning
from safety.families.latent_model import LatentModel, PromptReader
from safety.samplers import SamplerName

ATTENTION = (
    *("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),
    *("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"),
)
"""The projections of the joint attention: of the image's tokens, then of the prompt's, as diffusers' scripts adapt them."""


class FlowSizes(NamedTuple):
    """What a folder's settings say of sizes, whichever parts of the model are loaded."""

    factor: int
    """Pixels of an image to one of its latents."""
    patch: int
    """Latents to one token of the network, along a side."""
    channels: int
    """Channels of the latents."""
    side: int
    """Side of the native image in pixels."""
    text_width: int
    """Width of the prompt's states."""


class FlowMatching(LatentModel):
    """What Stable Diffusion 3 and FLUX.1 share: the noise levels, and a transformer that mixes prompt and image."""

    lora_targets: tuple[str, ...] = ATTENTION
    text_targets: tuple[str, ...] = ("context_embedder",)
    """The one linear layer that reads the prompt's states alone: its outputs are the prompt's tokens in every block.

    The blocks themselves mix prompt and image. An expert that adapts this layer alone can be gated, as one of a UNet's
    keys and values can; the pooled state, which modulates the blocks, then stays as it is.
    """

    def __init__(self, pipeline: Any, readers: Sequence[PromptReader], sizes: FlowSizes, dtype: torch.dtype) -> None:
        """Take a pipeline's transformer, and keep the noise levels of its scheduler.

        Args:
            pipeline: The stock pipeline; what a process does without is None in it (``Parts``).
            readers: What checks a prompt's length; none where prompts are not encoded.
            sizes: Those of the model's folder.
            dtype: The type that the networks compute in.
        """
        super().__init__(pipeline, pipeline.transformer, readers, sizes.factor * sizes.patch, sizes.side)
        self.sizes, self.dtype = sizes, dtype
        # Sampling replaces the scheduler's own table, which runs from the noisiest level to the least.
        fresh = type(pipeline.scheduler).from_config(pipeline.scheduler.config)
        self._sigmas: Tensor = fresh.sigmas.flip(0).clone()
        self.train_timesteps = len(self._sigmas)

    def sampling(self, sampler: SamplerName | None) -> AbstractContextManager[None]:
        """Return a context that changes nothing; raise ConfigError for any sampler but the model's own, Euler's steps."""
        if sampler is not None:
            raise ConfigError(
                f"the sampler {sampler!r} is of models that predict noise, and this one matches flows",
                field="render.sampler",
                fix="leave it out: the model's own, Euler's steps, is taken",
            )
        return nullcontext()

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Return (C, h, w) for an image size, of which a token of the network covers ``size_multiple`` pixels a side."""
        super().latent_shape(height, width)
        return self.sizes.channels, height // self.sizes.factor, width // self.sizes.factor

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return sigma e + (1 - sigma) x."""
        sigmas = self.sigmas(timesteps).to(latents.device, latents.dtype)[:, None, None, None]
        return sigmas * noise + (1.0 - sigmas) * latents

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:  # noqa: ARG002 (of the protocol)
        """Return the velocity e - x, which is the same at every level."""
        return noise - latents

    def sigmas(self, timesteps: Tensor) -> Tensor:
        """Return the noise levels of timesteps int64 [B], fp32 in (0, 1]."""
        return self._sigmas.to(timesteps.device)[timesteps]

    def unconditional(self) -> Conditioning:
        """Return the encoded empty prompt, [1, ...]."""
        return self.encode_text([""])

    def encode_text(self, prompts: Sequence[str]) -> Conditioning:
        """Return ``{"states": [B, T, D], "pooled": [B, P]}``; a family's own."""
        raise NotImplementedError

    def inputs(self, conditioning: Conditioning) -> Conditioning:
        """Return the conditioning as the network takes it."""
        return {key: value.to(self.device, self.dtype) for key, value in conditioning.items()}


def expanded(conditioning: Conditioning, count: int) -> Conditioning:
    """Return the conditioning of one prompt, [1, ...], for ``count`` images; one of as many prompts is returned as it is."""
    return {key: value.expand(count, *value.shape[1:]) for key, value in conditioning.items()}


def t5_reader(tokenizer: Any, most: int) -> PromptReader:
    """Return the reader of a T5, which the stock pipeline gives ``most`` tokens, unless its tokenizer's own limit is lower."""
    return PromptReader(tokenizer, int(min(most, tokenizer.model_max_length)))
