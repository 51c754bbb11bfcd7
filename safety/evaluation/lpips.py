"""LPIPS: the distance between two images in a network's activations, by weights fitted to what people see.

Zhang et al. 2018, https://arxiv.org/abs/1801.03924, version 0.1 of their package ``lpips``. The network is AlexNet, their default,
or VGG-16: the file of weights decides.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from safety.errors import ArtifactFormatError
from safety.weight_files import checksum, read_weights

FIELD = "evaluate.lpips"
CONVERT = (
    "where the package lpips and torchvision are installed, write it once: save_file({k: v.clone() for k, v in "
    "lpips.LPIPS(net='alex').state_dict().items()}, 'lpips.safetensors')"
)
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""Of the channels of images in [-1, 1]."""
TINY = 1e-10
DIGITS = 12
BATCH = 16


class Convolution(NamedTuple):
    """A convolution by its number in torchvision's network, and its stride; it keeps the size but for its stride."""

    number: int
    stride: int = 1


class Block(NamedTuple):
    """Layers up to an activation that is compared: a maximum over ``pool`` pixels, by 2, then convolutions with ReLU."""

    pool: int
    convolutions: tuple[Convolution, ...]


def _block(pool: int, *numbers: int) -> Block:
    return Block(pool, tuple(Convolution(number) for number in numbers))


NETWORKS = {
    "alex": (
        Block(0, (Convolution(0, stride=4),)),
        _block(3, 3),
        _block(3, 6),
        _block(0, 8),
        _block(0, 10),
    ),
    "vgg": (_block(0, 0, 2), _block(2, 5, 7), _block(2, 10, 12, 14), _block(2, 17, 19, 21), _block(2, 24, 26, 28)),
}
FIRST_KERNELS = {"alex": 11, "vgg": 3}
SQUEEZE_ONLY = "lin5.model.1.weight"
"""A weight of SqueezeNet's, whose first kernel is that of VGG."""


class Lpips:
    """The distance on one device."""

    def __init__(self, tensors: dict[str, Tensor], network: str, digest: str, device: str = "cpu") -> None:
        """Take the weights by the names that the package ``lpips`` gives them; raise KeyError where one is missing."""
        self.name = f"lpips-0.1/{network}@{digest[:DIGITS]}"
        self._blocks, self._device = NETWORKS[network], torch.device(device)
        self._shift, self._scale = (torch.tensor(each, device=device)[None, :, None, None] for each in (SHIFT, SCALE))
        held = {
            (place, conv.number): tuple(
                tensors[f"net.slice{place + 1}.{conv.number}.{part}"].float() for part in ("weight", "bias")
            )
            for place, block in enumerate(self._blocks)
            for conv in block.convolutions
        }
        self._layers = {key: (weight.to(device), bias.to(device)) for key, (weight, bias) in held.items()}
        self._heads = [tensors[f"lin{place}.model.1.weight"].float().to(device) for place in range(len(self._blocks))]

    @torch.no_grad()
    def distances(self, images: Tensor, others: Tensor) -> Tensor:
        """Return each pair's distance, fp32 [B], of images uint8 [B, 3, H, W]; 0 for equal ones."""
        pairs = zip(torch.split(images, BATCH), torch.split(others, BATCH), strict=True)
        return torch.cat([self._batch(first, second) for first, second in pairs]).cpu()

    def _batch(self, images: Tensor, others: Tensor) -> Tensor:
        total = torch.zeros(len(images), device=self._device)
        for first, second, head in zip(self._activations(images), self._activations(others), self._heads, strict=True):
            total += F.conv2d((_unit(first) - _unit(second)).square(), head).mean(dim=(1, 2, 3))
        return total

    def _activations(self, images: Tensor) -> list[Tensor]:
        x = (images.to(self._device).float() / 127.5 - 1.0 - self._shift) / self._scale
        found = []
        for place, block in enumerate(self._blocks):
            if block.pool:
                x = F.max_pool2d(x, block.pool, stride=2)
            for conv in block.convolutions:
                weight, bias = self._layers[place, conv.number]
                # AlexNet's first kernel of 11 is padded by 2.
                padding = 2 if conv.stride > 1 else weight.shape[-1] // 2
                x = F.relu(F.conv2d(x, weight, bias, stride=conv.stride, padding=padding))
            found.append(x)
        return found


def _unit(x: Tensor) -> Tensor:
    """Return activations [B, C, H, W] of length one over the channels."""
    return x / (x.square().sum(dim=1, keepdim=True).sqrt() + TINY)


def load_lpips(path: Path, device: str = "cpu") -> Lpips:
    """Load the weights; raise ArtifactFormatError for a file that is no safetensors, or holds other weights."""
    tensors = read_weights(path, FIELD, CONVERT)
    kernel = tensors.get("net.slice1.0.weight", torch.zeros(0)).shape[-1]
    fitting = [name for name, side in FIRST_KERNELS.items() if side == kernel and SQUEEZE_ONLY not in tensors]
    try:
        return Lpips(tensors, fitting[0], checksum([path], None), device)
    except (IndexError, KeyError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else "neither AlexNet's nor VGG's"
        raise ArtifactFormatError(
            f"{path} does not hold LPIPS's weights ({reason})", field=FIELD, fix=CONVERT
        ) from None


def lpips_name(path: Path) -> str:
    """Load the weights for the name of their network; raises as ``load_lpips`` does."""
    return load_lpips(path).name
