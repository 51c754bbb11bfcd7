"""What a diffusers folder must be for the family of FLUX.1: its class, its parts, and sizes that fit each other."""

from __future__ import annotations

from pathlib import Path

from safety.families.flow_folder import (
    LEFT_OUT,
    T5_TOKENIZERS,
    Pair,
    require_equal,
    require_latent_range,
    require_schedule,
)
from safety.families.flow_matching import FlowSizes
from safety.families.layout import CLIP_TOKENIZERS, Layout
from safety.families.pipeline import vae_factor
from safety.families.weight_files import PartFiles

LAYOUT = Layout(
    family="flux",
    takes="FLUX.1 (dev and schnell): text to image, a CLIP and a T5 text encoder",
    pipeline_class="FluxPipeline",
    classes=("FluxPipeline", "FluxImg2ImgPipeline", "FluxInpaintPipeline"),
    denoiser="transformer",
    networks={
        "transformer": "FluxTransformer2DModel",
        "vae": "AutoencoderKL",
        "text_encoder": "CLIPTextModel",
        "text_encoder_2": "T5EncoderModel",
    },
    tokenizers={"tokenizer": CLIP_TOKENIZERS, "tokenizer_2": T5_TOKENIZERS},
    left_out=LEFT_OUT,
)
PACKED = 2
"""Latents to one token, along a side."""
USUAL_LATENTS = 128
"""Latents along a side of the stock pipeline's own size, for a VAE that states no ``sample_size``."""


def check_folder(folder: Path) -> tuple[dict[str, PartFiles], FlowSizes]:
    """Return the files of each part that is loaded, and the model's sizes.

    Raises:
        ConfigError: The folder holds no model, or one of another family.
        ArtifactFormatError: A file is missing or damaged, or a part has no safetensors.
    """
    found = LAYOUT.check(folder)
    require_schedule(LAYOUT, folder)
    require_latent_range(folder)
    return found, _sizes(folder, found)


def _sizes(folder: Path, found: dict[str, PartFiles]) -> FlowSizes:
    """Return the model's sizes; raise ConfigError for networks that do not fit each other.

    The transformer states no native size, so it is the VAE's.
    """
    configs = LAYOUT.configs(folder, found)
    net, vae, clip, t5 = (configs[name] for name in ("transformer", "vae", "text_encoder", "text_encoder_2"))
    channels, inputs = vae.get("latent_channels", 4), net.get("in_channels", 64)
    packed = ("the VAE's number of latent channels, four times", channels * PACKED**2)
    head, width = net.get("attention_head_dim", 128), net.get("joint_attention_dim", 4096)
    pooled, rotated = net.get("pooled_projection_dim", 768), sum(net.get("axes_dims_rope", (head,)))
    require_equal(
        LAYOUT,
        folder,
        [
            Pair("the transformer's in_channels", inputs, *packed),
            Pair("the transformer's out_channels", net.get("out_channels") or inputs, *packed),
            Pair("the transformer's patch_size", net.get("patch_size", 1), "that of packed latents", 1),
            Pair("the transformer's joint_attention_dim", width, "the T5's width", t5.get("d_model", 512)),
            Pair("its pooled_projection_dim", pooled, "the CLIP's width", clip.get("hidden_size", 512)),
            Pair("the sum of its axes_dims_rope", rotated, "its attention_head_dim", head),
        ],
    )
    factor = vae_factor(folder)
    return FlowSizes(factor, PACKED, channels, int(vae.get("sample_size") or USUAL_LATENTS * factor), width)
