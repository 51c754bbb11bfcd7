"""Truncation of a LoRA to a smaller rank by the singular value decomposition of dW, with its exact error."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch

from safety.lora.weights import LoraLayer


class Truncated(NamedTuple):
    """A layer of smaller rank, and the size of the difference."""

    layer: LoraLayer
    lost: float
    """Squared Frobenius norm of the difference."""
    total: float | None
    """Squared Frobenius norm of the original dW; None where nothing is lost: a search asks for it of no candidate."""

    @property
    def error(self) -> float:
        """Return the relative Frobenius error, in [0, 1]."""
        return math.sqrt(self.lost / self.total) if self.total else 0.0


def truncate(layer: LoraLayer, rank: int) -> Truncated:
    """Return the best approximation of ``layer`` of at most ``rank`` (Eckart and Young, 1936); itself where it fits.

    dW = B A is decomposed through the QR factors of B and A^T, so that the SVD itself is only as large as the layer's
    rank. Both factors are scaled by the square roots of the singular values.
    """
    if layer.rank <= rank:
        return Truncated(layer, 0.0, None)
    left, left_inner = torch.linalg.qr(layer.up.double())
    right, right_inner = torch.linalg.qr(layer.down.double().T)
    inner_left, values, inner_right = torch.linalg.svd(left_inner @ right_inner.T)
    kept = min(rank, len(values))
    root = values[:kept].sqrt()
    up = left @ (inner_left[:, :kept] * root)
    down = (root[:, None] * inner_right[:kept]) @ right.T
    lost, total = float(values[kept:].square().sum()), float(values.square().sum())
    return Truncated(LoraLayer(down.float().contiguous(), up.float().contiguous()), lost, total)


def overall_error(parts: Iterable[Truncated]) -> float:
    """Return the relative Frobenius error of all layers together."""
    every = list(parts)
    lost = sum(part.lost for part in every)
    if lost == 0:
        return 0.0
    total = sum(part.layer.squared_norm() if part.total is None else part.total for part in every)
    return math.sqrt(lost / total) if total > 0 else 0.0
