"""Weights in closed form, equal on every machine and version, for networks whose published weights are not at hand."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor


def drawn(shapes: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors of the given ones' names and shapes: waves of a scale at which a deep network magnifies no rounding."""
    found = {}
    for place, (name, like) in enumerate(shapes.items()):
        if not like.is_floating_point():
            found[name] = like.clone()
            continue
        steps = torch.arange(like.numel(), dtype=torch.float64)
        wave = torch.sin(steps * 1.7 + (steps * 0.013).cos() * 9.0 + place).reshape(like.shape)
        if name.endswith("running_var") or (like.ndim == 1 and name.endswith("weight")):
            found[name] = (1.0 + 0.3 * wave).float()
        elif like.ndim == 1:
            found[name] = (0.1 * wave).float()
        else:
            found[name] = (wave * math.sqrt(2.0 / like[0].numel())).float()
    return found


def wave_images(count: int, height: int, width: int) -> Tensor:
    """Return images of coloured waves, uint8 [count, 3, height, width]; one image's waves are twice as dense as another's."""
    sides = (torch.arange(count), torch.arange(3), torch.arange(height), torch.arange(width))
    image, channel, y, x = torch.meshgrid(*(side.double() for side in sides), indexing="ij")
    waves = torch.sin(x * 0.11 * (image + 1) + y * 0.07 * (channel + 1) + image)
    return (127.5 + 127.5 * waves).round().to(torch.uint8)
