"""What a diffusers folder must be for the family of Stable Diffusion 3: its class, its parts, and sizes that fit each other."""

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
from safety.families.weight_files import INDEX_FILE, PartFiles, broken

T5 = ("text_encoder_3", "tokenizer_3")
"""The parts that a folder may leave out, both or none."""
LAYOUT = Layout(
    family="sd3",
    takes="Stable Diffusion 3 and 3.5: text to image, two CLIP text encoders with projections, and perhaps a T5",
    pipeline_class="StableDiffusion3Pipeline",
    classes=("StableDiffusion3Pipeline", "StableDiffusion3Img2ImgPipeline", "StableDiffusion3InpaintPipeline"),
    denoiser="transformer",
    networks={
        "transformer": "SD3Transformer2DModel",
        "vae": "AutoencoderKL",
        "text_encoder": "CLIPTextModelWithProjection",
        "text_encoder_2": "CLIPTextModelWithProjection",
        "text_encoder_3": "T5EncoderModel",
    },
    tokenizers={"tokenizer": CLIP_TOKENIZERS, "tokenizer_2": CLIP_TOKENIZERS, "tokenizer_3": T5_TOKENIZERS},
    optional=T5,
    left_out=LEFT_OUT,
)


def check_folder(folder: Path) -> tuple[dict[str, PartFiles], FlowSizes]:
    """Return the files of each part that is loaded, and the model's sizes.

    Raises:
        ConfigError: The folder holds no model, or one of another family.
        ArtifactFormatError: A file is missing or damaged, or a part has no safetensors.
    """
    found = LAYOUT.check(folder)
    alone = [name for name in T5 if name in found]
    if len(alone) == 1:
        raise broken(folder / INDEX_FILE, f"it names {alone[0]}, and of {' and '.join(T5)} not the other")
    require_schedule(LAYOUT, folder)
    require_latent_range(folder)
    return found, _sizes(folder, found)


def _sizes(folder: Path, found: dict[str, PartFiles]) -> FlowSizes:
    """Return the model's sizes; raise ConfigError for networks that do not fit each other."""
    configs = LAYOUT.configs(folder, found)
    net, vae, clip, clip_2 = (configs[name] for name in ("transformer", "vae", "text_encoder", "text_encoder_2"))
    width, patch, channels = net.get("joint_attention_dim", 4096), net.get("patch_size", 2), net.get("in_channels", 16)
    latents = ("the VAE's number of latent channels", vae.get("latent_channels", 4))
    pooled, projected = net.get("pooled_projection_dim", 2048), [c.get("projection_dim", 512) for c in (clip, clip_2)]
    inner = net.get("num_attention_heads", 18) * net.get("attention_head_dim", 64)
    pairs = [
        Pair("the transformer's in_channels", channels, *latents),
        Pair("the transformer's out_channels", net.get("out_channels", 16) or channels, *latents),
        Pair("the transformer's pooled_projection_dim", pooled, "the CLIPs' projections together", sum(projected)),
        Pair("its caption_projection_dim", net.get("caption_projection_dim", 1152), "its own width", inner),
    ]
    if T5[0] in configs:
        pairs.append(Pair("its joint_attention_dim", width, "the T5's width", configs[T5[0]].get("d_model", 512)))
    require_equal(LAYOUT, folder, pairs)
    states = sum(config.get("hidden_size", 512) for config in (clip, clip_2))
    if states > width:
        raise LAYOUT.misfit(f"{folder}: the CLIPs' states are {states} wide, and the transformer reads {width}")
    factor = vae_factor(folder)
    return FlowSizes(factor, patch, channels, net.get("sample_size", 128) * factor, width)
