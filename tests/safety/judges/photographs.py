"""Photographs that scikit-image ships, as images of one size."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor


def photographs(side: int = 300) -> Tensor:
    """Return uint8 [4, 3, side, side]; skip the test where scikit-image is not installed."""
    data = pytest.importorskip("skimage.data")
    found = []
    for name in ("astronaut", "chelsea", "coffee", "rocket"):
        image = torch.from_numpy(np.ascontiguousarray(getattr(data, name)()))
        found.append(image[:side, :side].permute(2, 0, 1))
    return torch.stack(found)
