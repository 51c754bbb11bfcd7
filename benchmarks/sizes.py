"""Networks of true sizes with random weights, for benchmarks: no model is needed to know how fast or large one is.

``pico`` is the embedded model itself.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from safety.dataset.preferences import PreferenceSet
from safety.families import ModelConfig, load_model
from safety.families.family import Conditioning
from safety.families.stable_diffusion import StableDiffusion

SizeName = Literal["pico", "sd15", "sdxl"]
SD15: dict[str, Any] = {
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
SDXL: dict[str, Any] = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
    "use_linear_projection": True,
}
UNETS = {"sd15": SD15, "sdxl": SDXL}
VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
}
VAE_SCALES = {"sd15": 0.18215, "sdxl": 0.13025}
CLIP_L: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
}
BIG_G: dict[str, Any] = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
    "hidden_act": "gelu",
}
TEXT_ENCODERS = {"sd15": (CLIP_L,), "sdxl": (CLIP_L, BIG_G)}


class Sized(StableDiffusion):
    """A UNet of either size; SDXL's reads a pooled state and six sizes too."""

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        if "pooled" not in conditioning:
            return super().predict(noisy, timesteps, conditioning)
        dtype = self.denoiser.conv_in.weight.dtype
        sizes = torch.zeros(len(noisy), 6, dtype=dtype, device=noisy.device)
        added = {"text_embeds": conditioning["pooled"].to(dtype), "time_ids": sizes}
        states = conditioning["states"].to(dtype)
        found: Tensor = self.denoiser(
            noisy.to(dtype), timesteps, encoder_hidden_states=states, added_cond_kwargs=added
        ).sample
        return found


class Shapes(NamedTuple):
    """Shapes of what one row of a size holds."""

    image: tuple[int, int, int]
    latent: tuple[int, int, int]
    prompt: dict[str, tuple[int, ...]]
    tokens: int


SHAPES = {
    "pico": Shapes((3, 64, 64), (32, 8, 8), {"states": (32, 192)}, 32),
    "sd15": Shapes((3, 512, 512), (4, 64, 64), {"states": (77, 768)}, 77),
    "sdxl": Shapes((3, 1024, 1024), (4, 128, 128), {"states": (77, 2048), "pooled": (1280,)}, 77),
}


def filled(network: nn.Module, dtype: torch.dtype, device: str) -> nn.Module:
    """Return a network that was made on "meta" with random weights on a device; on "meta" it keeps none."""
    for parameter in network.parameters():
        parameter.data = parameter.data.to(dtype)
    if device == "meta":
        return network
    network = network.to_empty(device=device)
    for parameter in network.parameters():
        torch.nn.init.trunc_normal_(parameter, std=0.02) if parameter.ndim > 1 else parameter.data.fill_(0.5)
    return network.requires_grad_(False).eval()


def unet(name: str, dtype: torch.dtype, device: str) -> nn.Module:
    """Return a random UNet of Stable Diffusion 1.5's or XL's size."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        found = UNet2DConditionModel(**UNETS[name])
    return filled(found, dtype, device)


def family(name: str, dtype: torch.dtype, device: str) -> StableDiffusion:
    """Return a model without VAE and text encoder; on the device "meta" it has no weights."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    if name == "pico":
        loaded: Any = load_model(ModelConfig(device=device), "denoiser")
        found: StableDiffusion = loaded
        return found
    denoiser = unet(name, dtype, device)
    scheduler = DDIMScheduler(clip_sample=False)
    return Sized(StableDiffusionPipeline(None, None, None, denoiser, scheduler, None, None, None, False), 8)


def vae(name: str, dtype: torch.dtype, device: str) -> nn.Module:
    """Return a VAE of the size, or the embedded one."""
    from diffusers import AutoencoderKL

    if name == "pico":
        loaded: Any = load_model(ModelConfig(device=device))
        found: nn.Module = loaded.pipeline.vae
        return found
    with torch.device("meta"):
        made = AutoencoderKL(**VAE, sample_size=SHAPES[name].image[-1], scaling_factor=VAE_SCALES[name])
    return filled(made, dtype, device)


def text_encoders(name: str, dtype: torch.dtype, device: str) -> list[nn.Module]:
    """Return the size's CLIP text encoders, or the embedded one."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    if name == "pico":
        loaded: Any = load_model(ModelConfig(device=device), "text")
        return [loaded.pipeline.text_encoder]
    found = []
    for settings in TEXT_ENCODERS[name]:
        network = CLIPTextModelWithProjection(CLIPTextConfig(**settings, vocab_size=49408, max_position_embeddings=77))
        found.append(network.to(device, dtype).requires_grad_(False).eval())
    return found


def random_rows(name: str, pairs: int, benign: int) -> PreferenceSet:
    """Return random latents and text states; there is always one benign row, read or not."""
    shapes, others = SHAPES[name], max(1, benign)
    prompts = {key: torch.randn(pairs, *shape) for key, shape in shapes.prompt.items()}
    return PreferenceSet(
        category="random",
        ids=tuple(f"pair-{i}" for i in range(pairs)),
        splits=("train",) * pairs,
        winner=torch.randn(pairs, *shapes.latent),
        loser=torch.randn(pairs, *shapes.latent),
        unsafe=prompts,
        safe=prompts,
        benign_ids=tuple(f"benign-{i}" for i in range(others)),
        benign_splits=("train",) * others,
        benign=torch.randn(others, *shapes.latent),
        benign_prompts={key: torch.randn(others, *shape) for key, shape in shapes.prompt.items()},
        empty={key: value[:1] for key, value in prompts.items()},
    )
