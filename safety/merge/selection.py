"""The choice of the expert that each row or weight is taken from: scores in, coefficients out."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Selection(NamedTuple):
    """The experts' coefficients for every cell (a row or a weight) of a layer, and the number of ties."""

    coefficients: Tensor
    """fp32 [N, ...cells], each in [0, 1], summing to 1 over the experts."""
    ties: int
    """Number of cells whose best score is shared by several experts; they go to the lowest index."""


def _count_ties(scores: Tensor) -> int:
    best = scores.amax(dim=0, keepdim=True)
    return int(((scores == best).sum(dim=0) > 1).sum())


def select_hard(scores: Tensor) -> Selection:
    """Give each cell to the expert with the largest score [N, ...cells]; ties go to the lowest index."""
    # torch.argmax documents that it returns the first of equal maxima.
    winner = scores.argmax(dim=0, keepdim=True)
    coefficients = torch.zeros(scores.shape, dtype=torch.float32).scatter_(0, winner, 1.0)
    return Selection(coefficients, _count_ties(scores))


def select_soft(scores: Tensor, tau: float, temperature: float) -> Selection:
    """Mix the experts of each cell: softmax(share / temperature) over the experts with a share of at least ``tau``.

    An expert's share is its score over the sum of all experts' scores; where all scores are zero the shares are
    equal. The expert with the largest share is always included.

    Args:
        scores: Non-negative scores, [N, ...cells].
        tau: Minimum share of an expert, in [0, 1).
        temperature: Above zero; as it approaches zero the selection becomes the hard one.
    """
    scores = scores.double()
    total = scores.sum(dim=0, keepdim=True)
    shares = torch.where(total > 0, scores / total.clamp_min(torch.finfo(torch.float64).tiny), 1.0 / len(scores))
    included = shares >= tau
    included.scatter_(0, shares.argmax(dim=0, keepdim=True), True)
    logits = (shares / temperature).masked_fill(~included, -torch.inf)
    return Selection(logits.softmax(dim=0).float(), _count_ties(scores))
