"""Stable Diffusion 1.x and 2.x: one CLIP text encoder, a UNet that predicts noise or velocity, a KL VAE."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from safety.families.family import Conditioning, ModelFamily, Parts, families
from safety.families.latent_model import PromptReader, token_limit
from safety.families.noise_prediction import NoisePrediction
from safety.families.pipeline import load_stock_pipeline, vae_factor
from safety.families.stable_diffusion_folder import LAYOUT, check_folder

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline


class StableDiffusion(NoisePrediction):
    """A loaded Stable Diffusion 1.x or 2.x model (see ``ModelFamily``)."""

    lora_targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")
    text_targets: tuple[str, ...] = ("attn2.to_k", "attn2.to_v")

    def __init__(self, pipeline: StableDiffusionPipeline, size_multiple: int | None = None) -> None:
        """Freeze a pipeline's networks and read its sizes; sampling uses DDIM, which is deterministic.

        Args:
            pipeline: The model; what a process does without is None in it (``Parts``).
            size_multiple: Pixels of an image to one of its latents; None: the pipeline's own, which has its VAE.
        """
        tokenizer, encoder = pipeline.tokenizer, pipeline.text_encoder
        readers = [] if encoder is None else [PromptReader(tokenizer, token_limit(tokenizer, encoder))]
        super().__init__(pipeline, readers, size_multiple or int(pipeline.vae_scale_factor))

    @torch.no_grad()
    def encode_text(self, prompts: Sequence[str]) -> Conditioning:
        """Return ``{"states": [B, T, D]}``."""
        for prompt in prompts:
            self.check_prompt(prompt)
        encoder = self.part("text_encoder")
        return {"states": encoder(self.token_ids(self._readers[0], prompts)).last_hidden_state}

    def unconditional(self) -> Conditioning:
        """Return the encoded empty prompt, [1, T, D]."""
        return self.encode_text([""])

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """Return the UNet's prediction [B, C, h, w]."""
        states = self.inputs(conditioning)["states"]
        predicted: Tensor = self.denoiser(noisy.to(states.dtype), timesteps, encoder_hidden_states=states).sample
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
        states = self.inputs(conditioning)["states"]
        against = self.inputs(self.unconditional() if negative is None else negative, len(noise))["states"]
        latents: Tensor = self.pipeline(
            prompt_embeds=states,
            negative_prompt_embeds=against,
            latents=noise.to(states.device, states.dtype),
            num_inference_steps=steps,
            guidance_scale=guidance,
            output_type="latent",
        ).images
        return self.decode_latents(latents)


@families.register("stable-diffusion")
class StableDiffusionLoader:
    """Loads Stable Diffusion 1.x and 2.x from a diffusers-format folder."""

    pipelines: ClassVar[tuple[str, ...]] = LAYOUT.classes
    model_class: ClassVar[type[ModelFamily]] = StableDiffusion
    pipeline_class: ClassVar[str] = LAYOUT.pipeline_class
    component: ClassVar[str] = LAYOUT.denoiser

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
    return load_stock_pipeline(LAYOUT, check_folder(path), path, dtype, parts), vae_factor(path)
