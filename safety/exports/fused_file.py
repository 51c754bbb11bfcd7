"""A fused model as one safetensors file in original layout: Stable Diffusion 1.x, 2.x and XL."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from safety.errors import ConfigError
from safety.exports.fused_weights import Rounding, denoiser_files, fused_tensor, tensors_of
from safety.exports.original_layout import TEXT_PREFIXES, text_tensors, unet_name, vae_tensor
from safety.families.model_index import model_parts
from safety.families.weight_files import read_index, read_json, require_weights
from safety.lora.weights import LoraWeights

LIKE_SD, LIKE_XL = "StableDiffusionPipeline", "StableDiffusionXLPipeline"


def write_fused_file(base: Path, weights: LoraWeights, target: Path, metadata: Mapping[str, str]) -> Rounding:
    """Write the file; the whole model is in memory meanwhile, in its own types.

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
    if kind not in (LIKE_SD, LIKE_XL):
        raise ConfigError(
            f"{base} is a {kind}, and the original layout is written for {LIKE_SD} and {LIKE_XL}",
            field="--form",
            fix="export a fused folder instead, or a LoRA",
        )
    xl = kind == LIKE_XL
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
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.partial")
    save_file(tensors, partial, metadata={"format": "pt", **metadata})
    partial.replace(target)
    return rounding
