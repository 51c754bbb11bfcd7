"""Tiny random models with the layouts of Stable Diffusion 1.x, 2.x and XL, as stock diffusers saves them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from safety.emoji.build.clip import train_tokenizer
from safety.lora.weights import LoraLayer, LoraWeights

WIDTH, SECOND_WIDTH = 32, 48
"""Of the text encoders; diffusers tells an XL's two apart by them in a single file."""
PIXELS = 1.0 / 255.0


def make_unet(**changed: Any) -> UNet2DConditionModel:
    settings: dict[str, Any] = {
        "sample_size": 8,
        "layers_per_block": 2,
        "block_out_channels": (16, 32, 32),
        "norm_num_groups": 8,
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": WIDTH,
        "attention_head_dim": 2,
    }
    return UNet2DConditionModel(**(settings | changed))


def make_vae() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 16, 16),
        layers_per_block=2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=32,
    )


def make_text(kind: type[Any], tokenizer: Any, activation: str, width: int = WIDTH) -> Any:
    return kind(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=2,
            max_position_embeddings=32,
            projection_dim=24,
            hidden_act=activation,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def make_pipeline(kind: str) -> DiffusionPipeline:
    torch.manual_seed(0)
    tokenizer = train_tokenizer(["a kitchen knife and a house on a blue background"], vocab_size=600)
    schedule: dict[str, Any] = {"beta_schedule": "scaled_linear", "clip_sample": False}
    if kind == "xl":
        unet = make_unet(
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2, 3),
            cross_attention_dim=WIDTH + SECOND_WIDTH,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=24 + 6 * 8,
        )
        return StableDiffusionXLPipeline(
            vae=make_vae(),
            text_encoder=make_text(CLIPTextModel, tokenizer, "quick_gelu"),
            text_encoder_2=make_text(CLIPTextModelWithProjection, tokenizer, "gelu", SECOND_WIDTH),
            tokenizer=tokenizer,
            tokenizer_2=tokenizer,
            unet=unet,
            scheduler=DDIMScheduler(**schedule),
            add_watermarker=False,
        )
    two = kind == "2"
    return StableDiffusionPipeline(
        vae=make_vae(),
        text_encoder=make_text(CLIPTextModel, tokenizer, "gelu" if two else "quick_gelu"),
        tokenizer=tokenizer,
        unet=make_unet(use_linear_projection=two, attention_head_dim=(2, 4, 4) if two else 2),
        scheduler=DDIMScheduler(**schedule, prediction_type="v_prediction" if two else "epsilon"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def random_adapter(denoiser: torch.nn.Module, size: float = 0.5, rank: int = 3) -> LoraWeights:
    """Return a random LoRA on every attention's projections, of two ranks."""
    draw = torch.Generator().manual_seed(3)
    layers = {}
    for place, (name, module) in enumerate(denoiser.named_modules()):
        if isinstance(module, torch.nn.Linear) and name.endswith(("to_q", "to_k", "to_v", "to_out.0")):
            own = rank + place % 2
            layers[name] = LoraLayer(
                torch.randn(own, module.in_features, generator=draw),
                size * torch.randn(module.out_features, own, generator=draw) / own,
            )
    return LoraWeights(layers)


def draw(pipeline: DiffusionPipeline) -> np.ndarray:
    """Return one image [H, W, 3] in [0, 1]."""
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.Generator().manual_seed(1)
    sizes = {"height": 32, "width": 32}
    images = pipeline("a knife", num_inference_steps=3, generator=noise, output_type="np", **sizes).images
    found: np.ndarray = images[0]
    return found
