"""What the families of flow-matching models share: noise levels, the velocity, the VAE's shift, prompts under two limits.

A latent x and noise e are mixed along a straight line, and the network predicts its direction, the velocity:

    x_t = (1 - sigma) x + sigma e        v = dx_t / dsigma = e - x

The timestep is an index of the scheduler's own table of noise levels, turned round so that a larger one is noisier:
sigma(i) = shift((i + 1) / N), with the fixed shift of the scheduler's settings (3 for Stable Diffusion 3), and none
where the shift depends on the image's size (FLUX.1). A uniform index is thus what diffusers' train_dreambooth_lora_sd3.py
and train_dreambooth_lora_flux.py draw by default (``--weighting_scheme none``), and all levels weigh the same: the
objectives read plain squared errors of the velocity. (An early version of the SD3 script measures the error of x instead,
which is sigma^2 times that of the velocity; its later versions have ``--precondition_outputs`` for it.)
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from safety.errors import ConfigError, PromptError
from safety.families.family import Conditioning

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


class Tokens(NamedTuple):
    """One tokenizer, and how many tokens its encoder reads."""

    tokenizer: Any
    limit: int

    def ids(self, prompts: Sequence[str], device: torch.device) -> Tensor:
        """Return token ids [B, limit], padded, and cut where a prompt is longer."""
        found: Tensor = self.tokenizer(
            list(prompts), padding="max_length", max_length=self.limit, truncation=True, return_tensors="pt"
        ).input_ids
        return found.to(device)

    def count(self, prompt: str) -> int:
        """Return a prompt's tokens, marks included."""
        return len(self.tokenizer(prompt, truncation=False).input_ids)


class FlowMatching:
    """A loaded flow-matching model (see ``ModelFamily``); its subclasses add the text encoders and the network's inputs."""

    text_targets: tuple[str, ...] = ("context_embedder",)
    """The one linear layer that reads the prompt's states alone: its outputs are the prompt's tokens in every block.

    The blocks themselves mix prompt and image. An expert that adapts this layer alone can be gated, as one of a UNet's
    keys and values can; the pooled state, which modulates the blocks, then stays as it is.
    """
    lora_targets: tuple[str, ...] = ATTENTION

    def __init__(self, pipeline: Any, sizes: FlowSizes, dtype: torch.dtype) -> None:
        """Freeze a pipeline's networks, and keep the noise levels of its scheduler.

        Args:
            pipeline: The stock pipeline; what a process does without is None in it (``Parts``).
            sizes: Those of the model's folder.
            dtype: The type that the networks compute in.
        """
        self.pipeline, self.sizes, self.dtype = pipeline, sizes, dtype
        self.pipeline.set_progress_bar_config(disable=True)
        for network in pipeline.components.values():
            if isinstance(network, torch.nn.Module):
                network.requires_grad_(False).eval()
        self.denoiser = pipeline.transformer
        # Sampling replaces the scheduler's own table, which runs from the noisiest level to the least.
        fresh = type(pipeline.scheduler).from_config(pipeline.scheduler.config)
        self._sigmas: Tensor = fresh.sigmas.flip(0).clone()
        self.train_timesteps = len(self._sigmas)
        self.size_multiple = sizes.factor * sizes.patch
        self.default_size = sizes.side
        self.max_tokens = 0
        # A tokenizer keeps the padding of its last call, so two calls at once could get each other's.
        self._tokenizing = threading.Lock()

    @property
    def device(self) -> torch.device:
        """Return the denoiser's device."""
        device: torch.device = self.pipeline.device
        return device

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Return (C, h, w) for an image size."""
        for name, side in (("height", height), ("width", width)):
            if side <= 0 or side % self.size_multiple:
                raise ConfigError(
                    f"{side} is not a positive multiple of {self.size_multiple}",
                    field=name,
                    fix=f"use a multiple of {self.size_multiple}, such as {self.default_size}",
                )
        return self.sizes.channels, height // self.sizes.factor, width // self.sizes.factor

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> Tensor:
        """Return scaled and shifted latents [B, C, h, w] of images [B, 3, H, W] in [-1, 1]."""
        vae = self._loaded("vae")
        latents: Tensor = vae.encode(images.to(vae.device, vae.dtype)).latent_dist.mode()
        return (latents - vae.config.shift_factor) * vae.config.scaling_factor

    @torch.no_grad()
    def decode_latents(self, latents: Tensor) -> Tensor:
        """Return images [B, 3, H, W], clamped to [-1, 1]."""
        vae = self._loaded("vae")
        raw = latents.to(vae.device, vae.dtype) / vae.config.scaling_factor + vae.config.shift_factor
        images: Tensor = vae.decode(raw).sample
        return images.clamp(-1.0, 1.0)

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return sigma e + (1 - sigma) x."""
        sigmas = self.sigmas(timesteps).to(latents.device, latents.dtype)[:, None, None, None]
        return sigmas * noise + (1.0 - sigmas) * latents

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
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

    def longest(self) -> Tokens:
        """Return the tokenizer whose limit is that of a prompt; a family's own."""
        raise NotImplementedError

    def check_prompt(self, prompt: str) -> None:
        """Raise PromptError when a prompt has more tokens than the model reads."""
        tokens = self.longest()
        with self._tokenizing:
            count = tokens.count(prompt)
            marks = tokens.count("")
        if count > tokens.limit:
            raise PromptError(
                f"the prompt has {count} tokens and the model reads {tokens.limit}",
                field="prompt",
                fix=f"shorten the prompt to at most {tokens.limit - marks} tokens of text",
            )

    def _loaded(self, part: str) -> Any:
        """Return a network; raise ValueError when the model was loaded without it."""
        network = getattr(self.pipeline, part)
        if network is None:
            raise ValueError(f"the model was loaded without its {part}")
        return network

    def _inputs(self, conditioning: Conditioning) -> Conditioning:
        """Return the conditioning as the network takes it."""
        return {key: value.to(self.device, self.dtype) for key, value in conditioning.items()}


def expanded(conditioning: Conditioning, count: int) -> Conditioning:
    """Return the conditioning of one prompt, [1, ...], for ``count`` images; one of as many prompts is returned as it is."""
    return {key: value.expand(count, *value.shape[1:]) for key, value in conditioning.items()}


def clip_limit(tokenizer: Any, encoder: Any) -> int:
    """Return how many tokens a CLIP encoder reads; a tokenizer without a limit of its own states an enormous one."""
    return int(min(tokenizer.model_max_length, encoder.config.max_position_embeddings))
