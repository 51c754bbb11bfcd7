"""CMMD: the maximum mean discrepancy between two sets of image features, with a Gaussian kernel.

Jayasumana et al. 2024, Rethinking FID, https://arxiv.org/abs/2401.09603. Unlike FID it assumes no normal distribution and has a
bias that does not depend on the features' number. Their figures are of CLIP ViT-L/14 at 336 pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SIGMA, SCALE = 10.0, 1000.0
"""The paper's bandwidth, and its factor for readable figures."""


def cmmd(images: Tensor, reference: Tensor) -> float:
    """Return SCALE * (E k(x, x') + E k(y, y') - 2 E k(x, y)) of features [N, D] and [M, D], made of length one first.

    k(x, y) = exp(-|x - y|^2 / (2 SIGMA^2)); the means are over all pairs, a row with itself included, as in the paper's code.
    """
    first, second = (F.normalize(rows.double(), dim=-1) for rows in (images, reference))
    own, other, both = _mean_kernel(first, first), _mean_kernel(second, second), _mean_kernel(first, second)
    return float(SCALE * (own + other - 2.0 * both))


def _mean_kernel(first: Tensor, second: Tensor) -> Tensor:
    return torch.exp(-torch.cdist(first, second).square() / (2.0 * SIGMA**2)).mean()
