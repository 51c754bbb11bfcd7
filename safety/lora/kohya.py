"""LoRA weights in kohya's file format, which ComfyUI and other image tools read.

A layer's tensors are ``PREFIX_LAYER.lora_down.weight`` [rank, inputs], ``.lora_up.weight`` [outputs, rank] and ``.alpha``,
where LAYER is the module's dotted name in diffusers with underscores for dots. ComfyUI maps these names onto its own model:

    unet         lora_unet_          SD 1.x, 2.x, XL; kohya's trainer writes the same for 1.x and 2.x
    transformer  lora_transformer_   SD3 and FLUX, whose original layers hold several of diffusers' ones

Every layer is written with the highest rank of any, padded with zeros: where ranks differ, diffusers scales layers of this
form wrongly, since it looks up their alphas under names that they do not have. ``pipe.load_lora_weights`` reads the first
form, and of FLUX the second on attention layers; of SD3 it reads diffusers' form alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn.functional import pad

from safety.lora.files import COMPONENTS, load_lora, write_tensors
from safety.lora.weights import LoraWeights

KOHYA_FILE = "kohya_lora.safetensors"
PREFIXES = dict(zip(COMPONENTS, ("lora_unet_", "lora_transformer_"), strict=True))


def kohya_tensors(weights: LoraWeights, component: str) -> dict[str, Tensor]:
    """Return an adapter's tensors by kohya's names, of one rank; alpha is the rank, so dW = up @ down.

    Args:
        weights: The adapter.
        component: The pipeline's part that it is for: "unet" or "transformer".
    """
    tensors = {}
    for name, layer in weights.items():
        key, missing = PREFIXES[component] + name.replace(".", "_"), weights.rank - layer.rank
        down, up = (matrix.detach().float().cpu() for matrix in layer)
        tensors[f"{key}.lora_down.weight"] = pad(down, (0, 0, 0, missing)).contiguous()
        tensors[f"{key}.lora_up.weight"] = pad(up, (0, missing)).contiguous()
        tensors[f"{key}.alpha"] = torch.tensor(float(weights.rank))
    return tensors


def write_kohya(adapter: Path, target: Path, metadata: Mapping[str, Any]) -> Path:
    """Write kohya's form of an adapter file in diffusers' form; equal inputs give equal bytes.

    Args:
        adapter: The file of ``save_lora``.
        target: The file to write.
        metadata: Plain values for the file's header, under ``safetydpo``.

    Raises:
        ArtifactFormatError: The adapter's file cannot be read.
    """
    weights = load_lora(adapter)
    header = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(weights.rank),
        "ss_network_alpha": str(float(weights.rank)),
    }
    return write_tensors(kohya_tensors(weights, component_of(adapter)), target, metadata=metadata, header=header)


def component_of(adapter: Path) -> str:
    """Return the pipeline's part that a file of ``save_lora`` is for: "unet" or "transformer"."""
    with safe_open(adapter, "pt") as handle:
        return str(next(iter(handle.keys()))).partition(".")[0]
