"""Truncation of a LoRA to a smaller rank by the singular value decomposition of dW, with its exact error."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from safety.lora.weights import LoraLayer, LoraWeights


class Truncated(NamedTuple):
    """A layer of smaller rank, and the size of the difference."""

    layer: LoraLayer
    lost: float
    """Squared Frobenius norm of the difference."""
    total: float
    """Squared Frobenius norm of the original dW."""

    @property
    def error(self) -> float:
        """Return the relative Frobenius error, in [0, 1]."""
        return math.sqrt(self.lost / self.total) if self.total > 0 else 0.0


def truncate(layer: LoraLayer, rank: int) -> Truncated:
    """Return the best approximation of ``layer`` of at most ``rank`` (Eckart and Young, 1936).

    dW = B A is decomposed through the QR factors of B and A^T, so that the SVD itself is only as large as the layer's
    rank. Both factors are scaled by the square roots of the singular values.
    """
    left, left_inner = torch.linalg.qr(layer.up.double())
    right, right_inner = torch.linalg.qr(layer.down.double().T)
    inner_left, values, inner_right = torch.linalg.svd(left_inner @ right_inner.T)
    kept = min(rank, len(values))
    root = values[:kept].sqrt()
    up = left @ (inner_left[:, :kept] * root)
    down = (root[:, None] * inner_right[:kept]) @ right.T
    lost, total = float(values[kept:].square().sum()), float(values.square().sum())
    return Truncated(LoraLayer(down.float().contiguous(), up.float().contiguous()), lost, total)


def truncate_all(weights: LoraWeights, rank: int) -> tuple[LoraWeights, dict[str, float], float]:
    """Truncate every layer; return the weights, each layer's relative error, and that of all layers together."""
    parts = {name: truncate(layer, rank) for name, layer in weights.items()}
    total = sum(part.total for part in parts.values())
    overall = math.sqrt(sum(part.lost for part in parts.values()) / total) if total > 0 else 0.0
    return (
        LoraWeights({name: part.layer for name, part in parts.items()}),
        {name: part.error for name, part in parts.items()},
        overall,
    )
