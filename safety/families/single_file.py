"""Single files in original layout, such as web pages hand out: which model one is, by its keys, its shapes and its own words.

Stable Diffusion 1.x, 2.x and XL are known; what diffusers would download for them lies in ``original_layouts/`` (see its README).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

from safety.errors import ConfigError, SafetyError
from safety.families.model_config import ModelConfig
from safety.families.weight_files import INDEX_FILE, broken, read_index, require_whole

LAYOUTS = Path(__file__).parent / "original_layouts"
KNOWN = {"v1": "stable-diffusion-1", "v2": "stable-diffusion-2", "xl_base": "stable-diffusion-xl"}
"""diffusers' names of the layouts whose settings are shipped."""
DENOISER, DECODER = "model.diffusion_model.", "first_stage_model.decoder.conv_in.weight"
TEXT = ("cond_stage_model.", "conditioner.embedders.0.")


class Header(NamedTuple):
    """What a safetensors file says of its content."""

    metadata: dict[str, str]
    shapes: dict[str, Tensor]
    """Tensors without memory."""
    types: dict[str, str]
    """Types of number, as safetensors calls them."""


def read_header(file: Path) -> Header:
    """Return a file's header; raise ArtifactFormatError when the file is not whole."""
    require_whole(file)
    with safe_open(file, "pt") as handle:
        slices = {key: handle.get_slice(key) for key in list(handle.keys())}
        shapes = {key: torch.empty(part.get_shape(), device="meta") for key, part in slices.items()}
        return Header(handle.metadata() or {}, shapes, {key: part.get_dtype() for key, part in slices.items()})


def layout_index(file: Path, config: ModelConfig) -> dict[str, Any]:
    """Return the ``model_index.json`` of a single file's layout; raise as ``layout_folder`` does."""
    return read_index(layout_folder(file, config))


def layout_folder(file: Path, config: ModelConfig) -> Path:
    """Return the folder of settings that a single file is read with.

    Raises:
        ConfigError: No settings are known for its layout, or it does not say what it predicts.
        ArtifactFormatError: It is damaged, or no whole model.
    """
    header = read_header(file)
    if config.settings is not None:
        try:
            folder = Path(config.settings).expanduser()
            read_index(folder)
        except (SafetyError, RuntimeError) as error:
            text = error.message if isinstance(error, SafetyError) else str(error)
            raise ConfigError(
                text, field="model.settings", fix=f"name a diffusers folder of this machine, with its {INDEX_FILE}"
            ) from None
        return folder
    # Slow to import, and only for single files.
    from diffusers.loaders.single_file_utils import infer_diffusers_model_type

    _require_model(file, header.shapes)
    kind = infer_diffusers_model_type(header.shapes)
    if kind not in KNOWN:
        raise ConfigError(
            f"{file} is a single file of {kind!r}, whose settings are not shipped",
            field="model.path",
            fix="name the model's diffusers folder; or a diffusers folder of its kind as model.settings",
        )
    predicted(file, header, LAYOUTS / KNOWN[kind], config)
    return LAYOUTS / KNOWN[kind]


def predicted(file: Path, header: Header, layout: Path, config: ModelConfig) -> str | None:
    """Return what a file's denoiser predicts; None: what the settings in the folder of its layout say.

    The file's own word is its metadata (``modelspec.prediction_type``) or the key ``v_pred``, as other tools write them.

    Raises:
        ConfigError: The layout has models of both kinds and neither file nor setting says which; or the two differ.
    """
    said = _said_prediction(header)
    if said is not None and config.prediction not in (None, said):
        raise ConfigError(
            f"{file} says itself that it predicts {said!r}", field="model.prediction", fix="leave the setting out"
        )
    found = said or config.prediction
    if found is None and layout == LAYOUTS / KNOWN["v2"]:
        raise ConfigError(
            f"{file} is of Stable Diffusion 2.x, and does not say what it predicts",
            field="model.prediction",
            fix="set it to v_prediction for a model of 768 pixels, to epsilon for one of 512",
        )
    return found


def _said_prediction(header: Header) -> str | None:
    said = header.metadata.get("modelspec.prediction_type", "").lower()
    if "v_pred" in header.shapes or said in ("v", "v_prediction", "v-prediction"):
        return "v_prediction"
    return "epsilon" if said in ("epsilon", "eps") else None


def _require_model(file: Path, shapes: Mapping[str, Tensor]) -> None:
    """Refuse what is no whole model in original layout, and say what it is."""
    has = {
        "denoiser": any(key.startswith(DENOISER) for key in shapes),
        "VAE": DECODER in shapes or any(key.startswith("vae.") for key in shapes),
        "text encoder": any(key.startswith((*TEXT, "text_encoders.")) for key in shapes),
    }
    if all(has.values()):
        return
    fix = "name a whole model: its diffusers folder, or a single file with denoiser, VAE and text encoder"
    if any(has.values()):
        lacks = " and no ".join(name for name, there in has.items() if not there)
        raise broken(file, f"it holds no {lacks}", fix)
    if any("lora_" in key or ".lora" in key for key in shapes):
        raise broken(file, "it is a LoRA, and no model", fix)
    if any(key.startswith(("down_blocks.", "transformer_blocks.", "text_model.")) for key in shapes):
        raise broken(file, "it is one network of a diffusers folder", "name the folder that holds model_index.json")
    if "decoder.conv_in.weight" in shapes:
        raise broken(file, "it is a VAE alone", "name it as model.vae, beside a whole model as model.path")
    raise broken(file, f"its layout is unknown (its first key is {next(iter(shapes))!r})", fix)
