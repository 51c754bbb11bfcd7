"""LoRA weights in diffusers' file format, which stock ``pipe.load_lora_weights`` reads.

alpha / rank is folded into B, so every layer is written with alpha = rank; ranks may differ from layer to layer,
as they do in merged adapters.
"""

from __future__ import annotations

import json
import struct
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from safety.errors import ArtifactFormatError
from safety.families import ModelFamily
from safety.lora.weights import LoraLayer, LoraWeights

LORA_FILE = "pytorch_lora_weights.safetensors"
ADAPTER_METADATA = "lora_adapter_metadata"
OWN_METADATA = "safetydpo"
COMPONENTS = ("unet", "transformer")
ENDINGS = {
    ".lora_A.weight": "down",
    ".lora_B.weight": "up",
    ".lora.down.weight": "down",
    ".lora.up.weight": "up",
}
_FIX = "use an adapter that jobs.train or jobs.merge wrote, or another one in diffusers' LoRA format"


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
    header = {
        "format": "pt",
        ADAPTER_METADATA: _to_json(_adapter_metadata(weights, component)),
        OWN_METADATA: _to_json(dict(metadata)),
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LORA_FILE
    partial = path.with_name(f"{LORA_FILE}.partial")
    partial.write_bytes(_canonical(save(tensors, metadata=header)))
    partial.replace(path)
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
        scale = _Scale(json.loads(metadata.get(ADAPTER_METADATA, "{}")))
        weights = LoraWeights({n: _layer(n, parts, scale) for n, parts in _grouped(tensors).items()})
    except (ValueError, TypeError, AttributeError, LookupError, RuntimeError) as error:
        # A corrupt header may hold anything in place of settings.
        raise _refused(file, str(error)) from None
    _check_values(weights, str(file))
    return weights


def check_fits(weights: LoraWeights, model: ModelFamily) -> None:
    """Raise ArtifactFormatError when the adapter is empty or fits another base model only."""
    fix = "use the base model that the adapter was trained on"
    if not weights:
        raise ArtifactFormatError("it has no layer, so nothing would be applied", field="adapter", fix=_FIX)
    modules = dict(model.denoiser.named_modules())
    for name, layer in weights.items():
        if name not in modules:
            raise ArtifactFormatError(f"the base model has no layer {name}", field="adapter", fix=fix)
        weight = getattr(getattr(modules[name], "base_layer", modules[name]), "weight", None)
        wanted = (layer.up.shape[0], layer.down.shape[1])
        shape = None if weight is None else tuple(weight.shape)
        if shape != wanted:
            raise ArtifactFormatError(
                f"{name} is {wanted} in the adapter and {shape} in the base model", field="adapter", fix=fix
            )


class _Scale:
    """alpha / rank of each layer, from the adapter's metadata; 1 where that has none, as in diffusers."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        plain = {key.split(".", 1)[1]: value for key, value in metadata.items() if key.startswith(COMPONENTS)}
        self.alpha: float | None = plain.get("lora_alpha")
        self.patterns: dict[str, float] = {k.lstrip("^"): v for k, v in (plain.get("alpha_pattern") or {}).items()}
        self.rank_root = bool(plain.get("use_rslora", False))

    def of(self, name: str, rank: int, own: Tensor | None) -> float:
        alpha = float(own) if own is not None else self.patterns.get(name, self.alpha)
        if alpha is None:
            return 1.0
        return alpha / (rank**0.5 if self.rank_root else rank)


def _grouped(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Return each layer's tensors by "down", "up" and perhaps "alpha"; raise ValueError for tensors of no LoRA."""
    layers: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        component, _, rest = key.partition(".")
        if component not in COMPONENTS:
            raise ValueError(f"{key} does not belong to a denoiser ({' or '.join(COMPONENTS)})")
        ending = next((e for e in (*ENDINGS, ".alpha") if rest.endswith(e)), None)
        if ending is None:
            raise ValueError(f"{key} is not the name of a LoRA tensor in diffusers' format")
        layers.setdefault(rest.removesuffix(ending), {})[ENDINGS.get(ending, "alpha")] = value
    if not layers:
        raise ValueError("it has no tensor")
    return layers


def _layer(name: str, parts: Mapping[str, Tensor], scale: _Scale) -> LoraLayer:
    if not {"down", "up"} <= set(parts):
        raise ValueError(f"{name} has no {'up' if 'down' in parts else 'down'} matrix")
    down, up = parts["down"].float(), parts["up"].float()
    if down.ndim != 2 or up.ndim != 2:
        raise ValueError(f"{name} is not a linear layer")
    if not down.shape[0]:
        raise ValueError(f"{name} has rank 0")
    return LoraLayer(down, up * scale.of(name, down.shape[0], parts.get("alpha")))


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
