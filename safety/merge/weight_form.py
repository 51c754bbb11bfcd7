"""Co-Merge's granularity "weight": each entry of dW is taken from an expert of its own, so the result has no low rank.

A layer's merge is a matrix [outputs, inputs] that has to be made, as nothing smaller holds it. It is made in rows, one
layer at a time, and reduced at once: by a randomised SVD (Halko, Martinsson and Tropp, arXiv:0909.4061) to the highest rank
that a merge may have. Uncapped, the merges of a few hundred layers would be as large as the base model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from safety.lora.weights import LoraLayer, LoraWeights
from safety.merge.selection import Selection
from safety.merge.truncation import Truncated
from safety.seeds import normal

CHUNK_CELLS = 8_000_000
"""Most entries, over all experts, that are compared at once."""
OVERSAMPLED, PASSES = 16, 2
"""Columns of the sketch beyond the rank, and its passes over the matrix and its transpose."""


class WeightMerge(NamedTuple):
    """A layer merged by weights, and what was chosen."""

    layer: Truncated
    shares: Tensor
    """fp64 [N]: each expert's mean coefficient."""
    ties: int


def dense_bytes(weights: LoraWeights) -> int:
    """Return the bytes of all layers' dW in fp32, which every candidate of this form makes one after another."""
    return 4 * sum(layer.up.shape[0] * layer.down.shape[1] for layer in weights.values())


def merge_by_weights(
    name: str,
    layers: Sequence[LoraLayer],
    lambdas: Sequence[float],
    select: Callable[[Tensor], Selection],
    max_rank: int | None,
) -> WeightMerge:
    """Merge one layer by weights.

    Args:
        name: The layer's name, from which the sketch's random matrix is drawn.
        layers: The experts' layers.
        lambdas: The experts' factors.
        select: Returns the coefficients of some rows from the experts' |dW|, [N, rows, inputs].
        max_rank: The highest rank of the result; None: exact, with one factor the identity.
    """
    outputs, inputs = layers[0].up.shape[0], layers[0].down.shape[1]
    dense = torch.empty(outputs, inputs)
    shares, ties = torch.zeros(len(layers), dtype=torch.float64), 0
    rows = max(1, CHUNK_CELLS // (len(layers) * inputs))
    for start in range(0, outputs, rows):
        part = slice(start, start + rows)
        deltas = torch.stack([layer.up[part] @ layer.down for layer in layers])
        found = select(deltas.abs())
        shares += found.coefficients.double().sum(dim=(1, 2))
        ties += found.ties
        factors = torch.tensor(lambdas)[:, None, None]
        dense[part] = (found.coefficients * factors * deltas).sum(dim=0)
    return WeightMerge(factorised(dense, max_rank, name), shares / dense.numel(), ties)


def factorised(dense: Tensor, max_rank: int | None, name: str) -> Truncated:
    """Return dW [outputs, inputs] as a layer of at most ``max_rank``; exact where its smaller side is no larger."""
    outputs, inputs = dense.shape
    if max_rank is None or min(outputs, inputs) <= max_rank:
        identity = torch.eye(min(outputs, inputs))
        exact = LoraLayer(identity, dense) if inputs <= outputs else LoraLayer(dense, identity)
        return Truncated(exact, 0.0, None)
    total = float(dense.double().square().sum())
    columns = min(max_rank + OVERSAMPLED, outputs, inputs)
    sketch = dense @ normal((inputs, columns), 0, f"weight-form/{name}")
    for _ in range(PASSES):
        # Orthogonal columns in between: powers of the matrix would leave its largest direction alone.
        sketch = dense @ (dense.T @ torch.linalg.qr(sketch).Q)
    basis = torch.linalg.qr(sketch).Q
    inner, values, right = torch.linalg.svd(basis.T @ dense, full_matrices=False)
    root = values[:max_rank].sqrt()
    layer = LoraLayer(
        (root[:, None] * right[:max_rank]).contiguous(), (basis @ (inner[:, :max_rank] * root)).contiguous()
    )
    # The basis is orthonormal, so what is kept and what is lost add up to the whole.
    lost = max(0.0, total - float(values[:max_rank].double().square().sum()))
    return Truncated(layer, lost, total)


def weight_select(
    choose: Callable[[Tensor], Selection], score: str, mean_input: Tensor, active_inputs: Tensor
) -> Callable[[Tensor], Selection]:
    """Return the selection by |dW| of some rows, [N, rows, inputs], as ``merge_by_weights`` takes it.

    Args:
        choose: The selection by scores: hard or soft.
        score: "vote" or "sum".
        mean_input: Mean |x_k| over the calibration's inputs, [inputs].
        active_inputs: The number of inputs with x_k != 0, [inputs].
    """

    def select(magnitude: Tensor) -> Selection:
        if score == "sum":
            return choose(magnitude * mean_input)
        # No pass over the inputs is needed. |x_k| is common to all experts, so for every input with x_k != 0 the
        # largest |dW_i[j,k]| |x_k| is at the largest |dW_i[j,k]|: multiplying by one positive number keeps the order
        # and the ties. Hence the winner is the same for all inputs, and gets the vote of each one with x_k != 0. An
        # input with x_k = 0, or a weight that is zero in every expert, gives no signal and no vote.
        first = magnitude.argmax(dim=0, keepdim=True)
        votes = torch.zeros_like(magnitude).scatter_(0, first, 1.0)
        return choose(votes * (magnitude.amax(dim=0, keepdim=True) > 0) * active_inputs)

    return select


def describe_left_out(experts: Mapping[str, LoraWeights], limit: int) -> str | None:
    """Return why a search leaves this form out, or None where it does not: its matrices are over ``limit`` bytes."""
    size = dense_bytes(next(iter(experts.values())))
    if size <= limit:
        return None
    return (
        f"the search leaves granularity 'weight' out: each candidate would make {size / 2**20:,.0f} MiB of dense matrices, "
        f"over merge.search.max_weight_bytes ({limit / 2**20:,.0f} MiB)"
    )
