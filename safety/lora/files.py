"""LoRA weights in diffusers' file format, which stock ``pipe.load_lora_weights`` reads.

alpha / rank is folded into B, so every layer is written with alpha = rank; ranks may differ from layer to layer,
as they do in merged adapters.
"""

from __future__ import annotations

import json
import re
import struct
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from safety.errors import ArtifactFormatError
from safety.families import ModelFamily
from safety.lora.scale import LoraScale
from safety.lora.weights import LoraLayer, LoraWeights

LORA_FILE = "pytorch_lora_weights.safetensors"
ADAPTER_METADATA = "lora_adapter_metadata"
OWN_METADATA = "safetydpo"
COMPONENTS = ("unet", "transformer")
ENDINGS = {".lora_A.weight": "down", ".lora_B.weight": "up", ".alpha": "alpha"}
UNREADABLE = {
    "lora_magnitude_vector": "it is a DoRA (use_dora), which rescales the base weights too",
    "dora_scale": "it is a DoRA, which rescales the base weights too",
    ".lora_B.bias": "it has biases (lora_bias), and only matrices are read",
    ".lora_embedding_": "it adapts an embedding, and only linear layers are read",
}
"""Parts of tensor names that peft and others write beside or in place of matrices, and why they cannot be read."""
OTHER_FORMATS = {
    "text_encoder": "it adapts the text encoder too, and only the denoiser is adapted here",
    "lora_unet_": "it is in kohya's format",
    "lora_transformer_": "it is in kohya's format",
    "lora_te": "it is in kohya's format",
    "base_model.model.": "it is in peft's own format",
}
"""Starts of tensor names in files that are not for a denoiser in diffusers' format."""
_FIX = (
    "use an adapter that jobs.train or jobs.merge wrote, or a plain LoRA of the denoiser's linear layers in diffusers' "
    "format (pipe.save_lora_weights)"
)


def save_lora(
    weights: LoraWeights, folder: Path, *, metadata: Mapping[str, Any], component: str = COMPONENTS[0]
) -> Path:
    """Write ``pytorch_lora_weights.safetensors``; equal weights and metadata give equal bytes.

    Args:
        weights: The adapter.
        folder: The target folder; created when missing.
        metadata: Plain values for the file's header, under ``safetydpo``.
        component: The pipeline's part that the adapter is for: "unet" or "transformer".

    Raises:
        ArtifactFormatError: The adapter is empty or holds a value that is not finite.
    """
    _check_values(weights, LORA_FILE)
    tensors = {}
    for name, layer in weights.items():
        tensors[f"{component}.{name}.lora_A.weight"] = layer.down.detach().float().cpu().contiguous()
        tensors[f"{component}.{name}.lora_B.weight"] = layer.up.detach().float().cpu().contiguous()
    header = {ADAPTER_METADATA: _to_json(_adapter_metadata(weights, component))}
    return write_tensors(tensors, folder / LORA_FILE, metadata=metadata, header=header)


def write_tensors(
    tensors: Mapping[str, Tensor], path: Path, *, metadata: Mapping[str, Any], header: Mapping[str, str]
) -> Path:
    """Write an adapter's safetensors file, whole or not at all; equal inputs give equal bytes.

    Args:
        tensors: By name.
        path: The file; its folder is created when missing.
        metadata: Plain values for the file's header, under ``safetydpo``.
        header: Further entries of the header, for other programs.
    """
    entries = {"format": "pt", **header, OWN_METADATA: _to_json(dict(metadata))}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    try:
        partial.write_bytes(_canonical(save(dict(tensors), metadata=entries)))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def load_lora(path: Path) -> LoraWeights:
    """Read an adapter from a file, or from the file of the usual name in a folder.

    Raises:
        ArtifactFormatError: The file is missing, not safetensors, in another LoRA format, or holds values that are
            not finite or do not fit together.
    """
    file = path / LORA_FILE if path.is_dir() else path
    if file.suffix != ".safetensors":
        raise _refused(file, "only safetensors files are read: others can run code")
    if not file.is_file():
        raise _refused(file, "there is no such file")
    try:
        with safe_open(file, "pt") as handle:
            metadata: dict[str, str] = handle.metadata() or {}
            tensors = {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError) as error:
        raise _refused(file, f"it is not a whole safetensors file ({error})") from error
    try:
        component = _component(tensors)
        # Before the tensors: a setting says better than a tensor's odd name what the file is.
        scale = LoraScale(_settings(metadata, component))
        layers = _grouped(tensors, component)
        weights = LoraWeights({name: _layer(name, parts, scale) for name, parts in layers.items()})
    except (ValueError, TypeError, AttributeError, LookupError, RuntimeError, OverflowError, re.error) as error:
        # A corrupt header may hold anything in place of settings.
        raise _refused(file, str(error)) from None
    _check_values(weights, str(file))
    return weights


def check_fits(weights: LoraWeights, model: ModelFamily) -> None:
    """Raise ArtifactFormatError when the adapter is empty or fits another base model only."""
    modules = dict(model.denoiser.named_modules())
    shapes: dict[str, tuple[int, ...] | None] = {}
    for name in weights.keys() & modules.keys():
        module = getattr(modules[name], "base_layer", modules[name])
        weight = getattr(module, "weight", None)
        if isinstance(module, nn.Linear):
            # A quantised layer's weight is packed in another shape.
            shapes[name] = (module.out_features, module.in_features)
        else:
            shapes[name] = None if weight is None else tuple(weight.shape)
    check_shapes(weights, shapes)


def check_shapes(weights: LoraWeights, shapes: Mapping[str, tuple[int, ...] | None]) -> None:
    """Raise ArtifactFormatError, which names the first misfit, when the adapter is empty or fits another base model only.

    Args:
        weights: The adapter.
        shapes: Of the weight of each of the base's layers; None for a layer without one.
    """
    fix = "use the base model that the adapter was trained on"
    if not weights:
        raise ArtifactFormatError("it has no layer, so nothing would be applied", field="adapter", fix=_FIX)
    for name, layer in weights.items():
        if name not in shapes:
            raise ArtifactFormatError(f"the base model has no layer {name}", field="adapter", fix=fix)
        wanted, shape = (layer.up.shape[0], layer.down.shape[1]), shapes[name]
        if shape != wanted:
            raise ArtifactFormatError(
                f"{name} is {wanted} in the adapter and {shape} in the base model", field="adapter", fix=fix
            )


def _settings(metadata: Mapping[str, str], component: str) -> dict[str, Any]:
    """Return peft's settings of a component; none where the file has no adapter metadata."""
    text = metadata.get(ADAPTER_METADATA) or "{}"
    prefix = f"{component}."
    return {key.removeprefix(prefix): value for key, value in json.loads(text).items() if key.startswith(prefix)}


def _component(tensors: Mapping[str, Tensor]) -> str:
    """Return the denoiser's name in the pipeline; raise ValueError, which says what the file is, for any other content."""
    if not tensors:
        raise ValueError("it has no tensor")
    for key in tensors:
        other = next((f": {why}" for start, why in OTHER_FORMATS.items() if key.startswith(start)), "")
        if other or key.partition(".")[0] not in COMPONENTS:
            raise ValueError(f"{key} does not belong to a denoiser ({' or '.join(COMPONENTS)}){other}")
    components = sorted({key.partition(".")[0] for key in tensors})
    if len(components) > 1:
        raise ValueError(f"it is for several denoisers: {', '.join(components)}")
    return components[0]


def _grouped(tensors: Mapping[str, Tensor], component: str) -> dict[str, dict[str, Tensor]]:
    """Return each layer's tensors by "down", "up" and perhaps "alpha"; raise ValueError for tensors of no plain LoRA."""
    layers: dict[str, dict[str, Tensor]] = {}
    for key in tensors:
        if why := next((why for part, why in UNREADABLE.items() if part in key), None):
            raise ValueError(f"{key}: {why}")
    for key, value in _in_new_names(tensors).items():
        ending = next((e for e in ENDINGS if key.endswith(e)), None)
        if ending is None:
            raise ValueError(f"{key} is not the name of a LoRA tensor in diffusers' format")
        layers.setdefault(key.removeprefix(f"{component}.").removesuffix(ending), {})[ENDINGS[ending]] = value
    return layers


def _in_new_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors under peft's names; those of older diffusers (``attn1.processor.to_q_lora.down``) are renamed."""
    if all(key.endswith(tuple(ENDINGS)) and ".processor." not in key for key in tensors):
        return dict(tensors)
    # Slow to import, and for older files alone.
    from diffusers.utils import convert_unet_state_dict_to_peft

    renamed: dict[str, Tensor] = convert_unet_state_dict_to_peft(dict(tensors))
    if len(renamed) < len(tensors):
        raise ValueError("it names a matrix twice, in an older and in the present way")
    return renamed


def _layer(name: str, parts: Mapping[str, Tensor], scale: LoraScale) -> LoraLayer:
    if not {"down", "up"} <= set(parts):
        raise ValueError(f"{name} has no {'up' if 'down' in parts else 'down'} matrix")
    down, up = parts["down"].float(), parts["up"].float()
    if down.ndim != 2 or up.ndim != 2:
        raise ValueError(f"{name} is not a linear layer but {'a convolution' if down.ndim == 4 else 'something else'}")
    if not down.shape[0]:
        raise ValueError(f"{name} has rank 0")
    alpha = float(parts["alpha"]) if "alpha" in parts else None
    return LoraLayer(down, up * scale.of(name, down.shape[0], alpha))


def _adapter_metadata(weights: LoraWeights, component: str) -> dict[str, Any]:
    """Return peft's settings of the adapter, as ``pipe.load_lora_weights`` reads them."""
    rank = Counter(layer.rank for layer in weights.values()).most_common(1)[0][0]
    others = {f"^{name}": layer.rank for name, layer in weights.items() if layer.rank != rank}
    settings = {
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": others,
        "alpha_pattern": others,
        "target_modules": list(weights),
    }
    return {f"{component}.{key}": value for key, value in settings.items()}


def _check_values(weights: LoraWeights, file: str) -> None:
    if not weights:
        raise ArtifactFormatError(f"{file}: the adapter has no layer", field="adapter", fix=_FIX)
    for name, layer in weights.items():
        if not (torch.isfinite(layer.down).all() and torch.isfinite(layer.up).all()):
            raise ArtifactFormatError(f"{file}: {name} holds values that are not finite", field="adapter", fix=_FIX)


def _to_json(document: Mapping[str, Any]) -> str:
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _canonical(data: bytes) -> bytes:
    """Return a safetensors file with its header's keys sorted: the library writes metadata in random order."""
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + length])
    text = json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def _refused(file: Path, reason: str) -> ArtifactFormatError:
    return ArtifactFormatError(f"{file}: {reason}", field="adapter", fix=_FIX)
