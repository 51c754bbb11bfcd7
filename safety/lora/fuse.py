"""Fusing an adapter into the base weights, temporarily or permanently."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from safety.families import ModelFamily
from safety.lora.files import check_fits
from safety.lora.weights import LoraWeights


@contextmanager
def fused(model: ModelFamily, weights: LoraWeights, scale: float = 1.0) -> Iterator[None]:
    """Add scale * dW to the base weights inside the context, and restore the original bytes at its end.

    Raises:
        ArtifactFormatError: The adapter is for another base model or has no layer.
    """
    check_fits(weights, model)
    originals = {name: _weight(model, name).detach().clone() for name in weights}
    try:
        _add(model, weights, scale)
        yield
    finally:
        with torch.no_grad():
            for name, original in originals.items():
                _weight(model, name).copy_(original)


def fuse(model: ModelFamily, weights: LoraWeights, scale: float = 1.0) -> None:
    """Add scale * dW to the base weights permanently; raise ArtifactFormatError when the adapter does not fit."""
    check_fits(weights, model)
    _add(model, weights, scale)


@torch.no_grad()
def _add(model: ModelFamily, weights: LoraWeights, scale: float) -> None:
    for name, layer in weights.items():
        weight = _weight(model, name)
        # Summed in fp32, so that a half-precision base is rounded once only.
        weight.copy_(weight.float() + scale * layer.delta().to(weight.device))


def _weight(model: ModelFamily, name: str) -> Tensor:
    """Return a layer's own weight, also when a LoRA is attached to the layer."""
    module = model.denoiser.get_submodule(name)
    base = getattr(module, "base_layer", module)
    assert isinstance(base, nn.Module)
    weight = base.weight
    assert isinstance(weight, Tensor)
    return weight
