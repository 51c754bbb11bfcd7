"""What a diffusers folder must be for the family of Stable Diffusion 3: its class, its parts, and sizes that fit each other."""

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
    family="sd3",
    what="Stable Diffusion 3 and 3.5: text to image, two CLIP text encoders with projections, and perhaps a T5",
    pipelines=("StableDiffusion3Pipeline", "StableDiffusion3Img2ImgPipeline", "StableDiffusion3InpaintPipeline"),
    networks={
        DENOISER: "SD3Transformer2DModel",
        VAE: "AutoencoderKL",
        "text_encoder": "CLIPTextModelWithProjection",
        "text_encoder_2": "CLIPTextModelWithProjection",
        "text_encoder_3": "T5EncoderModel",
    },
    readers={
        "text_encoder": ("tokenizer", CLIP_TOKENIZERS),
        "text_encoder_2": ("tokenizer_2", CLIP_TOKENIZERS),
        "text_encoder_3": ("tokenizer_3", T5_TOKENIZERS),
    },
    optional=("text_encoder_3",),
)


def folder_sizes(folder: Path) -> FlowSizes:
    """Return a model's sizes.

    Raises:
        ConfigError: The folder holds no model, or one of another family.
        ArtifactFormatError: A file is missing or damaged, or a part has no safetensors.
    """
    configs = check_layout(folder, LAYOUT).configs
    net, vae, clip, clip_2 = (configs[name] for name in (DENOISER, VAE, "text_encoder", "text_encoder_2"))
    width, patch = net.get("joint_attention_dim", 4096), net.get("patch_size", 2)
    channels, heads = net.get("in_channels", 16), net.get("num_attention_heads", 18)
    latents = ("the VAE's number of latent channels", vae.get("latent_channels", 4))
    pairs = [
        ("the transformer's in_channels", channels, *latents),
        ("the transformer's out_channels", net.get("out_channels", 16) or channels, *latents),
        (
            "the transformer's pooled_projection_dim",
            net.get("pooled_projection_dim", 2048),
            "the CLIPs' projections together",
            clip.get("projection_dim", 512) + clip_2.get("projection_dim", 512),
        ),
        (
            "the transformer's caption_projection_dim",
            net.get("caption_projection_dim", 1152),
            "its own width",
            heads * net.get("attention_head_dim", 64),
        ),
    ]
    if "text_encoder_3" in configs:
        t5 = configs["text_encoder_3"].get("d_model", 512)
        pairs.append(("the transformer's joint_attention_dim", width, "the T5's width", t5))
    require_equal(LAYOUT, folder, pairs)
    clips = clip.get("hidden_size", 512) + clip_2.get("hidden_size", 512)
    if clips > width:
        raise LAYOUT.misfit(f"{folder}: the CLIPs' states are {clips} wide, and the transformer reads {width}")
    factor = latent_factor(vae)
    return FlowSizes(factor, patch, channels, net.get("sample_size", 128) * factor, width)
