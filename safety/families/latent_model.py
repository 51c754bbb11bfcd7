"""What families of latent diffusion share, whatever their denoiser: sizes, prompts' tokens, and the latents of a KL VAE."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from safety.errors import ConfigError, PromptError
from safety.families.vae_memory import fit_memory


class PromptReader(NamedTuple):
    """A tokenizer, and how many tokens of it the text encoder behind it reads."""

    tokenizer: Any
    limit: int


class LatentModel:
    """A stock pipeline's networks, frozen, and what of ``ModelFamily`` depends on the VAE and the tokenizers alone.

    A family inherits from it and adds encoding of prompts, noise, prediction and sampling.
    """

    def __init__(
        self,
        pipeline: Any,
        denoiser: Any,
        readers: Sequence[PromptReader],
        size_multiple: int,
        default_size: int | None = None,
    ) -> None:
        """Freeze a pipeline's networks, in evaluation mode.

        Args:
            pipeline: The model; what a process does without is None in it (``Parts``).
            denoiser: Its network that LoRA experts adapt; None where it is not loaded.
            readers: What checks a prompt's length; none where prompts are not encoded.
            size_multiple: Pixels of an image's side to one of what the denoiser's ``sample_size`` counts.
            default_size: Side in pixels of the native image; None: by the denoiser's ``sample_size``.
        """
        self.pipeline = pipeline
        self.pipeline.set_progress_bar_config(disable=True)
        for network in pipeline.components.values():
            if isinstance(network, torch.nn.Module):
                network.requires_grad_(False).eval()
        self.denoiser = denoiser
        self.size_multiple = size_multiple
        if default_size is None:
            default_size = 0 if denoiser is None else int(denoiser.config.sample_size) * size_multiple
        self.default_size = default_size
        self.max_tokens = min((reader.limit for reader in readers), default=0)
        self._readers = tuple(readers)
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
        return int(self.denoiser.config.in_channels), height // self.size_multiple, width // self.size_multiple

    def check_prompt(self, prompt: str) -> None:
        """Raise PromptError when a prompt has more tokens than the model reads."""
        for tokenizer, limit in self._readers:
            with self._tokenizing:
                count = len(tokenizer(prompt, truncation=False).input_ids)
            if count > limit:
                marks = tokenizer.num_special_tokens_to_add()
                raise PromptError(
                    f"the prompt has {count} tokens and the model reads {limit}",
                    field="prompt",
                    fix=f"shorten the prompt to at most {limit - marks} tokens of text",
                )

    def part(self, name: str) -> Any:
        """Return a network of the pipeline; raise ValueError where it is not loaded (``Parts``)."""
        found = getattr(self.pipeline, name)
        if found is None:
            raise ValueError(f"the model was loaded without its {name}")
        return found

    def token_ids(self, reader: PromptReader, prompts: Sequence[str]) -> Tensor:
        """Return the prompts' tokens, padded to the reader's limit, int64 [B, T] on the model's device."""
        with self._tokenizing:
            ids: Tensor = reader.tokenizer(
                list(prompts), padding="max_length", max_length=reader.limit, truncation=True, return_tensors="pt"
            ).input_ids
        return ids.to(self.device)

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> Tensor:
        """Return scaled latents [B, C, h, w] of images [B, 3, H, W] in [-1, 1]."""
        vae = self.part("vae")
        fit_memory(vae, *images.shape[-2:])
        encoded: Tensor = vae.encode(images.to(vae.device, vae.dtype)).latent_dist.mode()
        shift, spread = self._latent_range(encoded)
        latents: Tensor = (encoded - shift) * vae.config.scaling_factor / spread
        return latents

    @torch.no_grad()
    def decode_latents(self, latents: Tensor) -> Tensor:
        """Return images [B, 3, H, W], clamped to [-1, 1]."""
        vae = self.part("vae")
        fit_memory(vae, *(side * 2 ** (len(vae.config.block_out_channels) - 1) for side in latents.shape[-2:]))
        latents = latents.to(vae.device, vae.dtype)
        shift, spread = self._latent_range(latents)
        images: Tensor = vae.decode(latents * spread / vae.config.scaling_factor + shift).sample
        return images.clamp(-1.0, 1.0)

    def _latent_range(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return m and s, each one number or [C, 1, 1]: the VAE's latents are z s / scaling_factor + m for the denoiser's z."""
        settings = self.pipeline.vae.config
        means, spreads = settings.get("latents_mean"), settings.get("latents_std")
        if means is not None and spreads is not None:
            return like.new_tensor(means)[:, None, None], like.new_tensor(spreads)[:, None, None]
        return like.new_tensor(settings.get("shift_factor") or 0.0), like.new_tensor(1.0)


def token_limit(tokenizer: Any, text_encoder: Any) -> int:
    """Return how many tokens a CLIP text encoder reads; a tokenizer without a limit of its own states an enormous one."""
    return int(min(tokenizer.model_max_length, text_encoder.config.max_position_embeddings))
