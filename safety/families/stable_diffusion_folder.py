"""What a diffusers folder must be for the Stable Diffusion family: its class, its parts, and sizes that fit each other.

It is read before anything is loaded: a folder of another class often loads as well, and fails at the first image, or
draws noise.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safety.errors import ConfigError
from safety.families.weight_files import (
    INDEX_FILE,
    LEFT_OUT,
    PartFiles,
    broken,
    parse_json,
    part_files,
    read_index,
    read_json,
    require_downloaded,
    require_weights,
)

CLASSES = ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline")
"""Pipelines whose folders hold the same parts; an inpainting UNet of nine channels is refused by its channels."""
NETWORKS = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL", "text_encoder": "CLIPTextModel"}
TOKENIZERS = ("CLIPTokenizer", "CLIPTokenizerFast")
VOCABULARIES = (("tokenizer.json",), ("vocab.json", "merges.txt"))
"""Files of which a tokenizer needs one set."""
FURTHER_INPUTS = (
    *("addition_embed_type", "class_embed_type", "encoder_hid_dim_type", "encoder_hid_dim", "time_cond_proj_dim"),
    "num_class_embeds",
)
"""A UNet's settings that ask for inputs beside the prompt's states: of SDXL, image variations, LCM..."""
PREDICTIONS = ("epsilon", "v_prediction")


def check_folder(folder: Path) -> dict[str, PartFiles]:
    """Return the files of each part that is loaded.

    Raises:
        ConfigError: The folder holds no model, or one of another family.
        ArtifactFormatError: A file is missing or damaged, or a part has no safetensors.
    """
    index = read_index(folder)
    _require_class(folder, index)
    found = {name: require_weights(folder / name) for name in NETWORKS}
    found |= {name: part_files(folder / name) for name in ("tokenizer", "scheduler")}
    for part in found.values():
        for path in part.settings:
            if path.suffix == ".json":
                parse_json(path)
    _require_vocabulary(folder / "tokenizer")
    _require_fit({name: read_json(folder / name / "config.json") for name in NETWORKS}, folder)
    _require_prediction(read_json(folder / "scheduler" / "scheduler_config.json"), folder)
    return found


def _require_class(folder: Path, index: Mapping[str, Any]) -> None:
    """Refuse a folder whose pipeline, or one of whose parts, is another than the family's."""
    pipeline = index.get("_class_name")
    if pipeline not in CLASSES:
        raise _misfit(f"{folder} holds {'no named pipeline' if pipeline is None else f'a {pipeline}'}")
    known = {**{name: (kind,) for name, kind in NETWORKS.items()}, "tokenizer": TOKENIZERS, "scheduler": None}
    for name, value in index.items():
        if name.startswith("_") or name in LEFT_OUT or not isinstance(value, list):
            continue
        if len(value) != 2:
            raise broken(folder / INDEX_FILE, f"{name} is {value!r}, and not a library and a class")
        if name not in known:
            if value[1] is not None:
                raise _misfit(f"{folder} has a part {name} ({value[1]})")
            continue
        kinds = known[name]
        if kinds is not None and value[1] not in kinds:
            raise _misfit(f"{folder}: its {name} is a {value[1]}, and the family takes {' or '.join(kinds)}")
    lost = [name for name in known if not isinstance(index.get(name), list)]
    if lost:
        raise broken(folder / INDEX_FILE, f"it names no {', '.join(lost)}")


def _require_vocabulary(tokenizer: Path) -> None:
    """Refuse a tokenizer without its words: transformers would make an empty one."""
    complete = next((names for names in VOCABULARIES if all((tokenizer / name).is_file() for name in names)), None)
    if complete is None:
        raise broken(tokenizer, f"it holds neither {' nor '.join(' and '.join(names) for names in VOCABULARIES)}")
    for name in complete:
        require_downloaded(tokenizer / name)


def _require_fit(configs: Mapping[str, Mapping[str, Any]], folder: Path) -> None:
    """Refuse networks that are not what their part's name says, or that do not fit each other."""
    for name, kind in NETWORKS.items():
        # transformers names no class, and older diffusers folders may not.
        found = configs[name].get("_class_name", kind)
        if found != kind:
            raise _misfit(f"{folder / name} is a {found}, and the family takes {kind}")
    unet, vae, text = configs["unet"], configs["vae"], configs["text_encoder"]
    asked = [f"{key} = {unet[key]!r}" for key in FURTHER_INPUTS if unet.get(key) is not None]
    if asked:
        raise _misfit(f"{folder / 'unet'} takes more than a prompt's states ({', '.join(asked)})")
    inputs, outputs, latents = unet.get("in_channels", 4), unet.get("out_channels", 4), vae.get("latent_channels", 4)
    if not inputs == outputs == latents:
        raise _misfit(
            f"{folder / 'unet'} reads {inputs} channels and writes {outputs}, and the VAE's latents have {latents}"
        )
    widths, width = unet.get("cross_attention_dim", 1280), text.get("hidden_size", 512)
    if set(widths if isinstance(widths, list) else [widths]) != {width}:
        raise _misfit(f"{folder / 'unet'} reads states of width {widths}, and the text encoder writes {width}")


def _require_prediction(scheduler: Mapping[str, Any], folder: Path) -> None:
    """Refuse a model that predicts neither noise nor velocity."""
    kind, predicts = str(scheduler.get("_class_name")), scheduler.get("prediction_type", PREDICTIONS[0])
    if predicts not in PREDICTIONS or "FlowMatch" in kind:
        raise _misfit(f"{folder / 'scheduler'} is a {kind} for {predicts!r}, and the family takes {PREDICTIONS}")


def _misfit(what: str) -> ConfigError:
    return ConfigError(
        f"{what}; the family 'stable-diffusion' takes Stable Diffusion 1.x and 2.x: text to image, one CLIP text encoder",
        field="model.path",
        fix=f"name a folder of a {CLASSES[0]} with a UNet of four channels, or the family that this model is of "
        "(model.family)",
    )
