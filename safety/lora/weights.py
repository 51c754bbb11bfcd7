"""LoRA weights as a value, which experts, merges, evaluation and serving pass to each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from torch import Tensor

SMALLEST = 1e-30
"""Least norm that is divided by."""


class LoraLayer(NamedTuple):
    """One adapted linear layer: dW = up @ down, with alpha / rank already folded into ``up``."""

    down: Tensor
    """A, fp32 [rank, inputs]."""
    up: Tensor
    """B, fp32 [outputs, rank]."""

    @property
    def rank(self) -> int:
        """Return the layer's rank."""
        return int(self.down.shape[0])

    def delta(self) -> Tensor:
        """Return dW, fp32 [outputs, inputs]."""
        return self.up @ self.down

    def squared_norm(self) -> float:
        """Return |B A|^2 (Frobenius) = <B^T B, A A^T>, without the product itself."""
        up, down = self.up.double(), self.down.double()
        return float(((up.T @ up) * (down @ down.T)).sum())

    def balanced(self) -> LoraLayer:
        """Return the same dW with equal norms of each component's row of A and column of B, so that one learning rate suits both.

        A component that is zero in one of the two becomes zero in both.
        """
        down, up = self.down.norm(dim=1), self.up.norm(dim=0)
        length = (down * up).sqrt()
        return LoraLayer(
            self.down * (length / down.clamp_min(SMALLEST))[:, None], self.up * (length / up.clamp_min(SMALLEST))
        )

    def gated(self, gate: Tensor) -> LoraLayer:
        """Return the layer that reads P x in place of x: dW P, with P [inputs, inputs]."""
        return LoraLayer(self.down @ gate, self.up)


class LoraWeights(Mapping[str, LoraLayer]):
    """Layers by the adapted module's dotted name in the denoiser, in sorted order.

    Names are those of ``denoiser.named_modules()``, such as
    ``down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q``.
    """

    def __init__(self, layers: Mapping[str, LoraLayer]) -> None:
        for name, layer in layers.items():
            if layer.down.ndim != 2 or layer.up.ndim != 2 or layer.up.shape[1] != layer.down.shape[0]:
                raise ValueError(f"{name}: up {tuple(layer.up.shape)} and down {tuple(layer.down.shape)} do not fit")
        self._layers = {name: layers[name] for name in sorted(layers)}

    def __getitem__(self, name: str) -> LoraLayer:
        """Return the layer called ``name``."""
        return self._layers[name]

    def __iter__(self) -> Iterator[str]:
        """Iterate over layer names in sorted order."""
        return iter(self._layers)

    def __len__(self) -> int:
        """Return the number of layers."""
        return len(self._layers)

    @property
    def rank(self) -> int:
        """Return the highest rank of any layer; 0 when there is no layer."""
        return max((layer.rank for layer in self.values()), default=0)

    def scaled(self, factor: float) -> LoraWeights:
        """Return the weights with every dW multiplied by ``factor``."""
        return LoraWeights({name: LoraLayer(layer.down, layer.up * factor) for name, layer in self.items()})
