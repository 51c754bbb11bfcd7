"""What a diffusers folder must be for the family of FLUX.1: its class, its parts, and sizes that fit each other."""

from __future__ import annotations

from pathlib import Path

from safety.families.flow_folder import (
    CLIP_TOKENIZERS,
    DENOISER,
    T5_TOKENIZERS,
    VAE,
    FlowLayout,
    check_layout,
    latent_factor,
    require_equal,
)
from safety.families.flow_matching import FlowSizes

LAYOUT = FlowLayout(
    family="flux",
    what="FLUX.1 (dev and schnell): text to image, a CLIP and a T5 text encoder",
    pipelines=("FluxPipeline", "FluxImg2ImgPipeline", "FluxInpaintPipeline"),
    networks={
        DENOISER: "FluxTransformer2DModel",
        VAE: "AutoencoderKL",
        "text_encoder": "CLIPTextModel",
        "text_encoder_2": "T5EncoderModel",
    },
    readers={"text_encoder": ("tokenizer", CLIP_TOKENIZERS), "text_encoder_2": ("tokenizer_2", T5_TOKENIZERS)},
)
PACKED = 2
"""Latents to one token, along a side."""
USUAL_LATENTS = 128
"""Latents along a side of the stock pipeline's own size, for a VAE that states no ``sample_size``."""


def folder_sizes(folder: Path) -> FlowSizes:
    """Return a model's sizes; the transformer states no native one, so it is the VAE's.

    Raises:
        ConfigError: The folder holds no model, or one of another family.
        ArtifactFormatError: A file is missing or damaged, or a part has no safetensors.
    """
    configs = check_layout(folder, LAYOUT).configs
    net, vae, clip, t5 = (configs[name] for name in (DENOISER, VAE, "text_encoder", "text_encoder_2"))
    channels, inputs = vae.get("latent_channels", 4), net.get("in_channels", 64)
    packed = ("the VAE's number of latent channels, four times", channels * PACKED**2)
    head, width = net.get("attention_head_dim", 128), net.get("joint_attention_dim", 4096)
    pairs = [
        ("the transformer's in_channels", inputs, *packed),
        ("the transformer's out_channels", net.get("out_channels") or inputs, *packed),
        ("the transformer's patch_size", net.get("patch_size", 1), "the one of packed latents", 1),
        ("the transformer's joint_attention_dim", width, "the T5's width", t5.get("d_model", 512)),
        (
            "the transformer's pooled_projection_dim",
            net.get("pooled_projection_dim", 768),
            "the CLIP's width",
            clip.get("hidden_size", 512),
        ),
        ("the transformer's axes_dims_rope", sum(net.get("axes_dims_rope", (head,))), "attention_head_dim", head),
    ]
    require_equal(LAYOUT, folder, pairs)
    factor = latent_factor(vae)
    return FlowSizes(factor, PACKED, channels, int(vae.get("sample_size") or USUAL_LATENTS * factor), width)
