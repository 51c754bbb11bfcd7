"""What a diffusers folder must be for the families of Stable Diffusion: its class, its parts, and sizes that fit each other.

It is read before anything is loaded: a folder of another class often loads as well, and fails at the first image, or
draws noise.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safety.families.layout import CLIP_TOKENIZERS, Layout
from safety.families.weight_files import PartFiles, read_json

LAYOUT = Layout(
    family="stable-diffusion",
    takes="Stable Diffusion 1.x and 2.x: text to image, one CLIP text encoder, a UNet of four channels",
    pipeline_class="StableDiffusionPipeline",
    # An inpainting UNet of nine channels is refused by its channels.
    classes=("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline"),
    denoiser="unet",
    networks={"unet": "UNet2DConditionModel", "vae": "AutoencoderKL", "text_encoder": "CLIPTextModel"},
    tokenizers={"tokenizer": CLIP_TOKENIZERS},
    settings={"requires_safety_checker": False},
)
FURTHER_INPUTS = (
    *("addition_embed_type", "class_embed_type", "encoder_hid_dim_type", "encoder_hid_dim", "time_cond_proj_dim"),
    "num_class_embeds",
)
"""A UNet's settings that ask for inputs beside the prompt's states: of SDXL, image variations, LCM..."""
PREDICTIONS = ("epsilon", "v_prediction")
OTHER_SCHEDULES = ("FlowMatch", "EDM")
"""Schedulers, by the start of their classes, of models that are trained on another target under the same name."""


def check_folder(folder: Path) -> dict[str, PartFiles]:
    """Return the files of each part that is loaded of a Stable Diffusion 1.x or 2.x model.

    Raises:
        ConfigError: The folder holds no model, or one of another family.
        ArtifactFormatError: A file is missing or damaged, or a part has no safetensors.
    """
    found = LAYOUT.check(folder)
    configs = LAYOUT.configs(folder, found)
    require_inputs(LAYOUT, configs["unet"], folder, FURTHER_INPUTS)
    require_channels(LAYOUT, configs, folder)
    require_width(LAYOUT, configs["unet"], configs["text_encoder"].get("hidden_size", 512), folder)
    require_prediction(LAYOUT, folder)
    return found


def require_inputs(layout: Layout, unet: Mapping[str, Any], folder: Path, further: tuple[str, ...]) -> None:
    """Refuse a UNet that has one of the settings ``further``, which ask for inputs that the family does not give."""
    asked = [f"{key} = {unet[key]!r}" for key in further if unet.get(key) is not None]
    if asked:
        raise layout.misfit(f"{folder / 'unet'} takes other inputs than the family's ({', '.join(asked)})")


def require_channels(layout: Layout, configs: Mapping[str, Mapping[str, Any]], folder: Path) -> None:
    """Refuse a UNet for other latents than the VAE's, such as one for inpainting."""
    unet, vae = configs["unet"], configs["vae"]
    inputs, outputs, latents = unet.get("in_channels", 4), unet.get("out_channels", 4), vae.get("latent_channels", 4)
    if not inputs == outputs == latents:
        raise layout.misfit(
            f"{folder / 'unet'} reads {inputs} channels and writes {outputs}, and the VAE's latents have {latents}"
        )


def require_width(layout: Layout, unet: Mapping[str, Any], width: int, folder: Path) -> None:
    """Refuse a UNet that reads states of another width than the text encoders write."""
    widths = unet.get("cross_attention_dim", 1280)
    if set(widths if isinstance(widths, list) else [widths]) != {width}:
        raise layout.misfit(f"{folder / 'unet'} reads states of width {widths}, and the text encoder writes {width}")


def require_prediction(layout: Layout, folder: Path) -> None:
    """Refuse a model that predicts neither noise nor velocity."""
    scheduler = read_json(folder / "scheduler" / "scheduler_config.json")
    kind, predicts = str(scheduler.get("_class_name")), scheduler.get("prediction_type", PREDICTIONS[0])
    if predicts not in PREDICTIONS or kind.startswith(OTHER_SCHEDULES):
        raise layout.misfit(
            f"{folder / 'scheduler'} is a {kind} for {predicts!r}, and the family takes {' or '.join(PREDICTIONS)}"
        )
