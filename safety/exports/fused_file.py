"""A fused model as one safetensors file in original layout: Stable Diffusion 1.x, 2.x and XL."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from safety.errors import ConfigError
from safety.exports.fused_weights import Rounding, denoiser_files, fused_tensor, tensors_of
from safety.exports.original_layout import TEXT_PREFIXES, text_tensors, unet_name, vae_tensor
from safety.families.model_index import model_parts
from safety.families.sdxl import LAYOUT as XL
from safety.families.stable_diffusion_folder import LAYOUT as SD
from safety.families.weight_files import read_index, read_json, require_weights
from safety.lora.weights import LoraWeights
from safety.tensor_format import save_tensors

PREDICTION = "modelspec.prediction_type"
VELOCITY_KEY, ZERO_SNR_KEY = "v_pred", "ztsnr"
"""Empty tensors by which ComfyUI and others know a model that predicts velocity, and one whose schedule ends in pure noise."""


def write_fused_file(base: Path, weights: LoraWeights, target: Path, metadata: Mapping[str, str]) -> Rounding:
    """Write the file, the same bytes for the same model; all of it is in memory meanwhile, in its own types.

    A file in this layout has no settings. What it predicts is said as other programs say it: in the header, and of
    velocity by a key, since a reader that takes it for noise draws nothing but noise.

    Args:
        base: The base model's diffusers folder.
        weights: The adapter.
        target: The file.
        metadata: Entries of its header.

    Raises:
        ConfigError: There is no such layout for this model.
        ArtifactFormatError: A file is damaged, or the adapter is for another base.
    """
    kind = read_index(base).get("_class_name")
    if kind not in (*SD.classes, *XL.classes):
        raise ConfigError(
            f"{base} is a {kind}, and the original layout is written for {SD.pipeline_class} and {XL.pipeline_class}",
            field="--form",
            fix="export a fused folder instead, or a LoRA",
        )
    xl = kind in XL.classes
    rounding = Rounding()
    tensors: dict[str, Tensor] = {}
    config = read_json(base / "unet" / "config.json")
    for _, name, tensor in tensors_of(denoiser_files(base, weights)):
        tensors[unet_name(name, config)] = fused_tensor(name, tensor, weights, rounding)
    config = read_json(base / "vae" / "config.json")
    for _, name, tensor in tensors_of(require_weights(base / "vae")):
        original, value = vae_tensor(name, tensor, config)
        tensors[original] = value
    for part in [name for name in model_parts(base) if name in TEXT_PREFIXES[xl]]:
        found = {name: tensor for _, name, tensor in tensors_of(require_weights(base / part))}
        tensors |= text_tensors(part, found, read_json(base / part / "config.json"), xl=xl)
    prediction, keys = _prediction(base)
    tensors |= keys
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.partial")
    try:
        save_tensors(tensors, partial, {"format": "pt", PREDICTION: prediction, **metadata})
        _sort_header(partial)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return rounding


def _prediction(base: Path) -> tuple[str, dict[str, Tensor]]:
    """Return what a model's own scheduler says that it predicts, in the header's words, and the keys that say so."""
    path = base / "scheduler" / "scheduler_config.json"
    settings = read_json(path) if path.is_file() else {}
    if settings.get("prediction_type") != "v_prediction":
        return "epsilon", {}
    keys = [VELOCITY_KEY, *([ZERO_SNR_KEY] if settings.get("rescale_betas_zero_snr") else [])]
    return "v", {key: torch.tensor([]) for key in keys}


def _sort_header(path: Path) -> None:
    """Sort a file's header in place: the library writes several entries of metadata in random order."""
    with path.open("r+b") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(length))
        text = json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) <= length:
            stream.seek(8)
            stream.write(text.ljust(length))
