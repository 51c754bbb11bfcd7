"""Small random models of every family, in the folders that stock diffusers writes, and the pipelines to hold ours against.

A family is an entry of ``PICO_MODELS``: its builder, and how the stock pipeline of its own class is opened. What tests of
every family read is there alone (tests/safety/families/test_family_contract.py, tests/jobs/test_families.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from safety.emoji.build.unet import make_scheduler
from tests.support.pico_flow_models import PICO_FLOW_MODELS
from tests.support.pico_parts import FACTOR, SIZE, PicoModel, clip_config, make_tokenizer, make_vae, open_clip_tokenizer


def make_unet(width: int, **settings: Any) -> UNet2DConditionModel:
    """Return a UNet that reads states of a width."""
    return UNet2DConditionModel(
        **{
            "sample_size": SIZE // FACTOR,
            "in_channels": 4,
            "out_channels": 4,
            "layers_per_block": 1,
            "block_out_channels": (16, 32),
            "norm_num_groups": 4,
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
            "cross_attention_dim": width,
            "attention_head_dim": 2,
            **settings,
        }
    )


def epsilon_scheduler() -> DDIMScheduler:
    """Return the noise schedule of Stable Diffusion 1.x and XL, which predict noise."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type="epsilon",
        steps_offset=1,
        clip_sample=False,
        set_alpha_to_one=False,
    )


def build_stable_diffusion(folder: Path) -> None:
    """Write Stable Diffusion with the schedule of the embedded model: 16-pixel images, 4x4 latents, 32 tokens."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    text = CLIPTextModel(clip_config(tokenizer, 32))
    _save_stable_diffusion(folder, text, tokenizer, make_vae(), make_unet(32), make_scheduler())


def build_stable_diffusion_1(folder: Path) -> None:
    """Write the layout of Stable Diffusion 1.x: noise prediction, quick GELU."""
    torch.manual_seed(1)
    tokenizer = make_tokenizer()
    text = CLIPTextModel(clip_config(tokenizer, 32, num_hidden_layers=2))
    _save_stable_diffusion(folder, text, tokenizer, make_vae(), make_unet(32), epsilon_scheduler())


def build_stable_diffusion_2(folder: Path) -> None:
    """Write the layout of Stable Diffusion 2.x: OpenCLIP's text encoder and padding, linear projections, v-prediction."""
    torch.manual_seed(2)
    tokenizer = open_clip_tokenizer()
    text = CLIPTextModel(clip_config(tokenizer, 32, num_hidden_layers=2, hidden_act="gelu", projection_dim=16))
    unet = make_unet(32, use_linear_projection=True, attention_head_dim=[2, 4], upcast_attention=True)
    scheduler = DDIMScheduler.from_config(epsilon_scheduler().config, prediction_type="v_prediction")
    _save_stable_diffusion(folder, text, tokenizer, make_vae(), unet, scheduler)


def _save_stable_diffusion(folder: Path, text: Any, tokenizer: Any, vae: Any, unet: Any, scheduler: Any) -> None:
    StableDiffusionPipeline(
        vae=vae,
        text_encoder=text,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)


def build_sdxl(folder: Path, *, zeros: bool = True, vae: dict[str, Any] | None = None) -> None:
    """Write the layout of Stable Diffusion XL.

    Args:
        folder: Where it is written.
        zeros: Whether no prompt is zeros (``force_zeros_for_empty_prompt``).
        vae: Further settings of the VAE.
    """
    torch.manual_seed(3)
    tokenizer, tokenizer_2 = make_tokenizer(), open_clip_tokenizer()
    text = CLIPTextModel(clip_config(tokenizer, 16, num_hidden_layers=2))
    text_2 = CLIPTextModelWithProjection(
        clip_config(tokenizer_2, 32, num_hidden_layers=3, hidden_act="gelu", projection_dim=24)
    )
    unet = make_unet(
        16 + 32,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=[1, 2],
        attention_head_dim=[2, 4],
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=24 + 6 * 8,
    )
    StableDiffusionXLPipeline(
        vae=make_vae(**{"scaling_factor": 0.13025, "force_upcast": True, **(vae or {})}),
        text_encoder=text,
        text_encoder_2=text_2,
        tokenizer=tokenizer,
        tokenizer_2=tokenizer_2,
        unet=unet,
        scheduler=EulerDiscreteScheduler.from_config(epsilon_scheduler().config),
        force_zeros_for_empty_prompt=zeros,
        add_watermarker=False,
    ).save_pretrained(folder)


def open_stable_diffusion(folder: Path) -> Any:
    """Open a folder by stock diffusers, with DDIM."""
    return _with_ddim(StableDiffusionPipeline.from_pretrained(folder, safety_checker=None))


def open_sdxl(folder: Path) -> Any:
    """Open a folder by stock diffusers, with DDIM and no watermark."""
    return _with_ddim(StableDiffusionXLPipeline.from_pretrained(folder, add_watermarker=False))


def _with_ddim(pipeline: Any) -> Any:
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


PICO_MODELS: dict[str, PicoModel] = {
    "stable-diffusion": PicoModel("stable-diffusion", build_stable_diffusion, open_stable_diffusion),
    "stable-diffusion-1": PicoModel("stable-diffusion", build_stable_diffusion_1, open_stable_diffusion),
    "stable-diffusion-2": PicoModel("stable-diffusion", build_stable_diffusion_2, open_stable_diffusion),
    "sdxl": PicoModel("sdxl", build_sdxl, open_sdxl),
    **PICO_FLOW_MODELS,
}
"""Models by name; families of other networks add theirs here, with a builder in a file beside this one."""
