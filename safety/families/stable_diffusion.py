"""Stable Diffusion 1.x and 2.x: one CLIP text encoder, a UNet that predicts noise or velocity, a KL VAE."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from safety.errors import ConfigError, PromptError
from safety.families.family import Conditioning, Parts, families
from safety.families.network import load_part, loaded
from safety.families.stable_diffusion_folder import CLASSES, check_folder
from safety.families.weight_files import LEFT_OUT, broken, read_json, unread_weights
from safety.quiet import no_progress_bars

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

logger = logging.getLogger(__name__)

WANTED: dict[Parts, tuple[str, ...]] = {
    "all": ("unet", "vae", "text_encoder"),
    "denoiser": ("unet",),
    "text": ("text_encoder",),
}
"""The networks that are loaded."""


class StableDiffusion:
    """A loaded Stable Diffusion 1.x or 2.x model (see ``ModelFamily``)."""

    lora_targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")
    text_targets: tuple[str, ...] = ("attn2.to_k", "attn2.to_v")

    def __init__(self, pipeline: StableDiffusionPipeline, size_multiple: int | None = None) -> None:
        """Freeze a pipeline's networks and read its sizes; sampling uses DDIM, which is deterministic.

        Args:
            pipeline: The model; what a process does without is None in it (``Parts``).
            size_multiple: Pixels of an image to one of its latents; None: the pipeline's own, which has its VAE.
        """
        # Slow to import, and not for processes that load no model.
        from diffusers import DDIMScheduler

        self.pipeline = pipeline
        self.pipeline.set_progress_bar_config(disable=True)
        self.pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
        networks = (pipeline.unet, pipeline.vae, pipeline.text_encoder)
        for network in filter(None, networks):
            network.requires_grad_(False).eval()
        self.denoiser = pipeline.unet
        self.train_timesteps = int(self.pipeline.scheduler.config.num_train_timesteps)
        self.size_multiple = size_multiple or int(pipeline.vae_scale_factor)
        self.default_size = 0 if pipeline.unet is None else int(pipeline.unet.config.sample_size) * self.size_multiple
        self.max_tokens = 0 if pipeline.text_encoder is None else _max_tokens(pipeline)
        # The tokenizer keeps the padding of its last call, so two calls at once could get each other's.
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
        with self._tokenizing:
            count = len(self.pipeline.tokenizer(prompt, truncation=False).input_ids)
        if count > self.max_tokens:
            raise PromptError(
                f"the prompt has {count} tokens and the model reads {self.max_tokens}",
                field="prompt",
                fix=f"shorten the prompt to at most {self.max_tokens - 2} tokens of text",
            )

    @torch.no_grad()
    def encode_text(self, prompts: Sequence[str]) -> Conditioning:
        """Return ``{"states": [B, T, D]}``."""
        for prompt in prompts:
            self.check_prompt(prompt)
        with self._tokenizing:
            tokens = self.pipeline.tokenizer(
                list(prompts), padding="max_length", max_length=self.max_tokens, return_tensors="pt"
            ).input_ids
        return {"states": self.pipeline.text_encoder(tokens.to(self.device)).last_hidden_state}

    def unconditional(self) -> Conditioning:
        """Return the encoded empty prompt, [1, T, D]."""
        return self.encode_text([""])

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> Tensor:
        """Return scaled latents [B, C, h, w] of images [B, 3, H, W] in [-1, 1]."""
        vae = self.pipeline.vae
        latents: Tensor = vae.encode(images.to(vae.device, vae.dtype)).latent_dist.mode() * vae.config.scaling_factor
        return latents

    @torch.no_grad()
    def decode_latents(self, latents: Tensor) -> Tensor:
        """Return images [B, 3, H, W], clamped to [-1, 1]."""
        vae = self.pipeline.vae
        images: Tensor = vae.decode(latents.to(vae.dtype) / vae.config.scaling_factor).sample
        return images.clamp(-1.0, 1.0)

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return the noised latents at ``timesteps``."""
        noised: Tensor = self.pipeline.scheduler.add_noise(latents, noise, timesteps)
        return noised

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return the noise, or the velocity for a v-prediction model."""
        kind = self.pipeline.scheduler.config.prediction_type
        if kind == "epsilon":
            return noise
        if kind == "v_prediction":
            velocity: Tensor = self.pipeline.scheduler.get_velocity(latents, noise, timesteps)
            return velocity
        raise ConfigError(
            f"the scheduler predicts {kind!r}", field="model.path", fix="use a model with epsilon or v_prediction"
        )

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """Return the UNet's prediction [B, C, h, w]."""
        predicted: Tensor = self.denoiser(noisy, timesteps, encoder_hidden_states=conditioning["states"]).sample
        return predicted

    @torch.no_grad()
    def sample(
        self,
        conditioning: Conditioning,
        noise: Tensor,
        *,
        steps: int,
        guidance: float,
        negative: Conditioning | None = None,
    ) -> Tensor:
        """Return images [B, 3, H, W] in [-1, 1] by the stock pipeline, from initial noise [B, C, h, w]."""
        against = (self.unconditional() if negative is None else negative)["states"]
        latents: Tensor = self.pipeline(
            prompt_embeds=conditioning["states"],
            negative_prompt_embeds=against.expand(len(noise), -1, -1),
            latents=noise.to(self.device, self.denoiser.dtype),
            num_inference_steps=steps,
            guidance_scale=guidance,
            output_type="latent",
        ).images
        return self.decode_latents(latents)


def _max_tokens(pipeline: StableDiffusionPipeline) -> int:
    """Return how many tokens the text encoder reads; a tokenizer without a limit of its own states an enormous one."""
    return int(min(pipeline.tokenizer.model_max_length, pipeline.text_encoder.config.max_position_embeddings))


@families.register("stable-diffusion")
class StableDiffusionLoader:
    """Loads Stable Diffusion 1.x and 2.x from a diffusers-format folder."""

    pipelines = CLASSES

    @staticmethod
    def load(path: Path, *, device: str, dtype: torch.dtype, parts: Parts = "all") -> StableDiffusion:
        """Load a folder; what lies unread beside its safetensors is named in the log."""
        pipeline, size_multiple = load_pipeline(path, dtype, parts)
        return StableDiffusion(pipeline.to(device), size_multiple)


def load_pipeline(path: Path, dtype: torch.dtype, parts: Parts = "all") -> tuple[StableDiffusionPipeline, int]:
    """Return a folder's pipeline on the CPU, and the pixels of an image to one of its latents.

    Raises:
        ConfigError: The folder holds a model of another family.
        ArtifactFormatError: A file is missing or damaged, or a part has no safetensors.
    """
    # Slow to import, and not for processes that load no model.
    from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel

    files = check_folder(path)
    unread = list(unread_weights(path, {file for part in files.values() for file in part.read}))
    if unread:
        logger.warning("%s: safetensors alone are read; ignored: %s", path, ", ".join(unread))
    kinds = {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "text_encoder": CLIPTextModel}
    wanted = WANTED[parts]
    with no_progress_bars():
        networks = {
            name: load_part(kind, path / name, files[name].variant, dtype) if name in wanted else None
            for name, kind in kinds.items()
        }
        if "text_encoder" not in wanted:
            networks["tokenizer"] = None
        pipeline = loaded(
            lambda: StableDiffusionPipeline.from_pretrained(
                path,
                **networks,
                **dict.fromkeys(LEFT_OUT),
                requires_safety_checker=False,
                local_files_only=True,
            ),
            path,
        )
    _require_words(pipeline, path)
    blocks = read_json(path / "vae" / "config.json").get("block_out_channels", (0,))
    return pipeline, 2 ** (len(blocks) - 1)


def _require_words(pipeline: StableDiffusionPipeline, path: Path) -> None:
    """Refuse a tokenizer with words that the text encoder does not know."""
    if pipeline.text_encoder is None:
        return
    words, known = len(pipeline.tokenizer), pipeline.text_encoder.config.vocab_size
    if words > known:
        raise broken(path / "tokenizer", f"it has {words} words, and the text encoder knows {known}")
