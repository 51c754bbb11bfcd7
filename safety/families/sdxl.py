"""Stable Diffusion XL: two CLIP text encoders, and a UNet that also reads a pooled prompt and the image's size.

The pooled prompt enters through the UNet's time embedding, and not through an attention: an expert, which adapts attentions,
leaves it as it is, and so does a gate, which closes the prompt's other way in (``text_targets``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from safety.families.family import Conditioning, ModelFamily, Parts, families
from safety.families.latent_model import PromptReader, token_limit
from safety.families.layout import CLIP_TOKENIZERS, Layout
from safety.families.noise_prediction import NoisePrediction
from safety.families.pipeline import load_stock_pipeline, vae_factor
from safety.families.stable_diffusion_folder import (
    FURTHER_INPUTS,
    require_channels,
    require_inputs,
    require_prediction,
    require_width,
)
from safety.families.weight_files import PartFiles, read_index

if TYPE_CHECKING:
    from diffusers import StableDiffusionXLPipeline

LAYOUT = Layout(
    family="sdxl",
    takes="Stable Diffusion XL: text to image, two CLIP text encoders, a UNet of four channels",
    pipeline_class="StableDiffusionXLPipeline",
    # An inpainting UNet of nine channels is refused by its channels, and the refiner by its missing text encoder.
    classes=("StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline", "StableDiffusionXLInpaintPipeline"),
    denoiser="unet",
    networks={
        "unet": "UNet2DConditionModel",
        "vae": "AutoencoderKL",
        "text_encoder": "CLIPTextModel",
        "text_encoder_2": "CLIPTextModelWithProjection",
    },
    tokenizers={"tokenizer": CLIP_TOKENIZERS, "tokenizer_2": CLIP_TOKENIZERS},
    left_out=("feature_extractor", "image_encoder"),
    settings={"add_watermarker": False},
)
SIZES = 6
"""Numbers of a size's embedding: the original size, the crop's corner and the target size, two each."""


class Sdxl(NoisePrediction):
    """A loaded Stable Diffusion XL model (see ``ModelFamily``)."""

    lora_targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")
    text_targets: tuple[str, ...] = ("attn2.to_k", "attn2.to_v")

    def __init__(self, pipeline: StableDiffusionXLPipeline, size_multiple: int) -> None:
        """Freeze a pipeline's networks; a VAE that overflows in fp16 (``force_upcast``) is kept in fp32.

        Args:
            pipeline: The model; what a process does without is None in it (``Parts``).
            size_multiple: Pixels of an image to one of its latents.
        """
        pairs = ((pipeline.tokenizer, pipeline.text_encoder), (pipeline.tokenizer_2, pipeline.text_encoder_2))
        readers = [
            PromptReader(tokenizer, token_limit(tokenizer, encoder))
            for tokenizer, encoder in pairs
            if encoder is not None
        ]
        super().__init__(pipeline, readers, size_multiple)
        vae = pipeline.vae
        if vae is not None and vae.dtype == torch.float16 and vae.config.force_upcast:
            vae.to(torch.float32)

    @torch.no_grad()
    def encode_text(self, prompts: Sequence[str]) -> Conditioning:
        """Return ``{"states": [B, T, D1 + D2], "pooled": [B, P]}``.

        States are the last but one of each encoder, side by side; the pooled vector is the second encoder's projection.
        """
        for prompt in prompts:
            self.check_prompt(prompt)
        states = []
        encoders = (self.part("text_encoder"), self.part("text_encoder_2"))
        for reader, encoder in zip(self._readers, encoders, strict=True):
            encoded = encoder(self.token_ids(reader, prompts), output_hidden_states=True)
            states.append(encoded.hidden_states[-2])
        return {"states": torch.cat(states, dim=-1), "pooled": encoded.text_embeds}

    def unconditional(self) -> Conditioning:
        """Return zeros, [1, ...], where the model was trained with them for no prompt; else the encoded empty prompt."""
        empty = self.encode_text([""])
        if not self.pipeline.config.force_zeros_for_empty_prompt:
            return empty
        return {name: torch.zeros_like(value) for name, value in empty.items()}

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """Return the UNet's prediction [B, C, h, w], for images that are neither cropped nor resized."""
        inputs, (height, width) = self.inputs(conditioning), self._pixels(noisy)
        states = inputs["states"]
        sizes = states.new_tensor([height, width, 0, 0, height, width]).expand(len(noisy), SIZES)
        predicted: Tensor = self.denoiser(
            noisy.to(states.dtype),
            timesteps,
            encoder_hidden_states=states,
            added_cond_kwargs={"text_embeds": inputs["pooled"], "time_ids": sizes},
        ).sample
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
        inputs, size = self.inputs(conditioning), self._pixels(noise)
        against = self.inputs(self.unconditional() if negative is None else negative, len(noise))
        latents: Tensor = self.pipeline(
            prompt_embeds=inputs["states"],
            pooled_prompt_embeds=inputs["pooled"],
            negative_prompt_embeds=against["states"],
            negative_pooled_prompt_embeds=against["pooled"],
            latents=noise.to(inputs["states"].device, inputs["states"].dtype),
            # The latents decide the size; these are what the UNet is told.
            original_size=size,
            target_size=size,
            num_inference_steps=steps,
            guidance_scale=guidance,
            output_type="latent",
        ).images
        return self.decode_latents(latents)

    def _pixels(self, latents: Tensor) -> tuple[int, int]:
        """Return the height and width of latents' images."""
        return latents.shape[-2] * self.size_multiple, latents.shape[-1] * self.size_multiple


@families.register("sdxl")
class SdxlLoader:
    """Loads Stable Diffusion XL from a diffusers-format folder."""

    pipelines: ClassVar[tuple[str, ...]] = LAYOUT.classes
    model_class: ClassVar[type[ModelFamily]] = Sdxl
    pipeline_class: ClassVar[str] = LAYOUT.pipeline_class
    component: ClassVar[str] = LAYOUT.denoiser

    @staticmethod
    def load(path: Path, *, device: str, dtype: torch.dtype, parts: Parts = "all") -> Sdxl:
        """Load a folder; what lies unread beside its safetensors is named in the log."""
        pipeline = load_stock_pipeline(LAYOUT, check_folder(path), path, dtype, parts)
        return Sdxl(pipeline.to(device), vae_factor(path))


def check_folder(folder: Path) -> dict[str, PartFiles]:
    """Return the files of each part that is loaded of a Stable Diffusion XL model.

    Raises:
        ConfigError: The folder holds no model, one of another family, or the refiner.
        ArtifactFormatError: A file is missing or damaged, or a part has no safetensors.
    """
    index = read_index(folder)
    if index.get("_class_name") in LAYOUT.classes and index.get("text_encoder") in (None, [None, None]):
        raise LAYOUT.misfit(
            f"{folder} has no first text encoder, as the refiner, which only finishes other models' images",
            "name the base model, such as stable-diffusion-xl-base-1.0",
        )
    found = LAYOUT.check(folder)
    configs = LAYOUT.configs(folder, found)
    unet, second = configs["unet"], configs["text_encoder_2"]
    require_inputs(LAYOUT, unet, folder, tuple(name for name in FURTHER_INPUTS if name != "addition_embed_type"))
    require_channels(LAYOUT, configs, folder)
    require_width(
        LAYOUT, unet, configs["text_encoder"].get("hidden_size", 512) + second.get("hidden_size", 512), folder
    )
    _require_addition(unet, int(second.get("projection_dim", 512)), folder)
    require_prediction(LAYOUT, folder)
    return found


def _require_addition(unet: Mapping[str, Any], pooled: int, folder: Path) -> None:
    """Refuse a UNet that reads something else than a pooled prompt and six sizes beside the prompt's states."""
    kind, size, width = (
        unet.get(name)
        for name in ("addition_embed_type", "addition_time_embed_dim", "projection_class_embeddings_input_dim")
    )
    if kind != "text_time" or size is None or width != pooled + SIZES * size:
        raise LAYOUT.misfit(
            f"{folder / 'unet'} reads {width} numbers beside the prompt's states ({kind}), and a pooled prompt of {pooled} "
            f"with {SIZES} sizes is given"
        )
