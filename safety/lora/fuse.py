"""Putting an adapter on the base model, temporarily or permanently: into weights of fp32, beside all others.

A weight of half precision is a point of a coarse grid, so an update of less than half a step would vanish in it, layer by
layer; a quantised one cannot be added to at all. There the update is computed beside the weight, in fp32, as the stock
pipeline's ``load_lora_weights`` does it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from safety.families import ModelFamily
from safety.lora.files import check_fits
from safety.lora.weights import LoraLayer, LoraWeights


@contextmanager
def fused(model: ModelFamily, weights: LoraWeights, scale: float = 1.0) -> Iterator[None]:
    """Add scale * dW to the base model inside the context, and restore its original bytes at the end.

    Raises:
        ArtifactFormatError: The adapter is for another base model or has no layer.
    """
    check_fits(weights, model)
    originals = {name: _weight(model, name).detach().clone() for name in weights if _is_fused(model, name)}
    hooks: list[Any] = []
    try:
        hooks += _add(model, weights, scale)
        yield
    finally:
        for hook in hooks:
            hook.remove()
        with torch.no_grad():
            for name, original in originals.items():
                _weight(model, name).copy_(original)


def fuse(model: ModelFamily, weights: LoraWeights, scale: float = 1.0) -> None:
    """Add scale * dW to the base model permanently; raise ArtifactFormatError when the adapter does not fit."""
    check_fits(weights, model)
    _add(model, weights, scale)


@torch.no_grad()
def _add(model: ModelFamily, weights: LoraWeights, scale: float) -> list[Any]:
    """Add the adapter; return the handles of what computes it beside the weights."""
    hooks = []
    for name, layer in weights.items():
        weight = _weight(model, name)
        if _is_fused(model, name):
            # Summed in fp32; the factors travel, not their product.
            up, down = layer.up.to(weight.device), layer.down.to(weight.device)
            weight.copy_(torch.addmm(weight.float(), up, down, alpha=scale))
        else:
            hooks.append(_base(model, name).register_forward_hook(_beside(layer, scale, weight.device)))
    return hooks


def _beside(layer: LoraLayer, scale: float, device: torch.device) -> Any:
    """Return a hook that adds scale * dW x to a linear layer's output, computed in fp32."""
    down, up = layer.down.to(device).T, (scale * layer.up).to(device).T

    def add(_module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return (output.float() + arguments[0].float() @ down @ up).to(output.dtype)

    return add


def _is_fused(model: ModelFamily, name: str) -> bool:
    """Return whether an update goes into the layer's weight."""
    return _weight(model, name).dtype == torch.float32


def _base(model: ModelFamily, name: str) -> nn.Module:
    """Return a layer itself, also when a LoRA is attached to it."""
    module = model.denoiser.get_submodule(name)
    base = getattr(module, "base_layer", module)
    assert isinstance(base, nn.Module)
    return base


def _weight(model: ModelFamily, name: str) -> Tensor:
    weight = _base(model, name).weight
    assert isinstance(weight, Tensor)
    return weight
