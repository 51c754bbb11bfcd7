"""A denoiser whose linear layers are stored in 8 or 4 bits, by bitsandbytes: for a card that does not hold the base.

diffusers' own loader of quantised models needs a GPU even to start, so layers are replaced here, after loading: the same
layers of bitsandbytes, on a CPU too. The text encoder and the VAE stay as they are.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from safety.errors import ConfigError

MARK = "blocks"
"""Part of the names of the layers that are quantised: those of the blocks, and not the embeddings and ends."""


def quantisable(network: nn.Module) -> dict[str, nn.Linear]:
    """Return the layers of a network that are quantised, by name."""
    return {name: module for name, module in network.named_modules() if isinstance(module, nn.Linear) and MARK in name}


def quantise(network: nn.Module, kind: str, device: torch.device, dtype: torch.dtype) -> None:
    """Replace a network's layers by quantised ones on a device, one after another.

    Args:
        network: The network, on the CPU.
        kind: "int8" or "nf4".
        device: Where the quantised layers are put.
        dtype: What they compute in.

    Raises:
        ConfigError: bitsandbytes is not installed.
    """
    library = _bitsandbytes()
    for name, layer in quantisable(network).items():
        made = _layer(library, layer, kind, dtype)
        parent, _, own = name.rpartition(".")
        setattr(network.get_submodule(parent), own, made.to(device).requires_grad_(False))
    # peft asks the network which of its own layers to wrap these in.
    name = "is_loaded_in_8bit" if kind == "int8" else "is_loaded_in_4bit"
    setattr(network, name, True)


def _layer(library: Any, layer: nn.Linear, kind: str, dtype: torch.dtype) -> nn.Module:
    settings: dict[str, Any] = {"bias": layer.bias is not None}
    if kind == "int8":
        made = library.nn.Linear8bitLt(layer.in_features, layer.out_features, has_fp16_weights=False, **settings)
        made.weight = library.nn.Int8Params(layer.weight.data, requires_grad=False, has_fp16_weights=False)
    else:
        made = library.nn.Linear4bit(
            layer.in_features, layer.out_features, compute_dtype=dtype, quant_type="nf4", **settings
        )
        made.weight = library.nn.Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4", module=made)
    if layer.bias is not None:
        made.bias = nn.Parameter(layer.bias.data, requires_grad=False)
    module: nn.Module = made
    return module


def _bitsandbytes() -> Any:
    try:
        # Large, and for quantised models alone.
        import bitsandbytes
    except ImportError as error:
        raise ConfigError(
            f"a quantised model needs bitsandbytes ({error})",
            field="model.quantize",
            fix="pip install -e '.[quantized]', or set it to 'none'",
        ) from error
    return bitsandbytes
