"""The Inception network behind FID: that of December 2015, as pytorch-fid patches torchvision's.

Szegedy et al. 2015, https://arxiv.org/abs/1512.00567. Modules have torchvision's names, so that the published weights load. It
differs from torchvision's in its pooling branches: averages leave the padding out, and the last block takes a maximum.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DIMENSIONS = 2048
SIDE = 299


class Conv(nn.Module):
    """A convolution without bias, batch normalisation and ReLU."""

    def __init__(self, inside: int, outside: int, kernel: int | tuple[int, int], stride: int = 1) -> None:
        """Pad so that the size stays, unless ``stride`` is 2 or the caller sets the padding to 0."""
        super().__init__()
        sides = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (0, 0) if stride > 1 else (sides[0] // 2, sides[1] // 2)
        self.conv = nn.Conv2d(inside, outside, sides, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outside, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, outside, H, W]."""
        return F.relu(self.bn(self.conv(x)), inplace=True)


def average(x: Tensor) -> Tensor:
    """Return the average of 3x3 neighbours, of fewer at an edge."""
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


class InceptionA(nn.Module):
    """Branches of 1x1, 5x5 and two 3x3 convolutions, and a pooled one."""

    def __init__(self, inside: int, pooled: int) -> None:
        super().__init__()
        self.branch1x1 = Conv(inside, 64, 1)
        self.branch5x5_1, self.branch5x5_2 = Conv(inside, 48, 1), Conv(48, 64, 5)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = Conv(inside, 64, 1), Conv(64, 96, 3)
        self.branch3x3dbl_3 = Conv(96, 96, 3)
        self.branch_pool = Conv(inside, pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, 224 + pooled, H, W]."""
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        parts = [self.branch1x1(x), self.branch5x5_2(self.branch5x5_1(x)), double, self.branch_pool(average(x))]
        return torch.cat(parts, 1)


class InceptionB(nn.Module):
    """From 288 channels to 768, at half the size."""

    def __init__(self) -> None:
        super().__init__()
        self.branch3x3 = Conv(288, 384, 3, stride=2)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = Conv(288, 64, 1), Conv(64, 96, 3)
        self.branch3x3dbl_3 = Conv(96, 96, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, 768, H/2, W/2]."""
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, F.max_pool2d(x, 3, stride=2)], 1)


class InceptionC(nn.Module):
    """Branches of convolutions of 1x7 and 7x1, 768 channels in and out."""

    def __init__(self, narrow: int) -> None:
        super().__init__()
        wide, tall = (1, 7), (7, 1)
        self.branch1x1 = Conv(768, 192, 1)
        self.branch7x7_1, self.branch7x7_2 = Conv(768, narrow, 1), Conv(narrow, narrow, wide)
        self.branch7x7_3 = Conv(narrow, 192, tall)
        self.branch7x7dbl_1, self.branch7x7dbl_2 = Conv(768, narrow, 1), Conv(narrow, narrow, tall)
        self.branch7x7dbl_3, self.branch7x7dbl_4 = Conv(narrow, narrow, wide), Conv(narrow, narrow, tall)
        self.branch7x7dbl_5 = Conv(narrow, 192, wide)
        self.branch_pool = Conv(768, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, 768, H, W]."""
        single = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return torch.cat([self.branch1x1(x), single, double, self.branch_pool(average(x))], 1)


class InceptionD(nn.Module):
    """From 768 channels to 1280, at half the size."""

    def __init__(self) -> None:
        super().__init__()
        self.branch3x3_1, self.branch3x3_2 = Conv(768, 192, 1), Conv(192, 320, 3, stride=2)
        self.branch7x7x3_1, self.branch7x7x3_2 = Conv(768, 192, 1), Conv(192, 192, (1, 7))
        self.branch7x7x3_3, self.branch7x7x3_4 = Conv(192, 192, (7, 1)), Conv(192, 192, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, 1280, H/2, W/2]."""
        seven = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x))))
        return torch.cat([self.branch3x3_2(self.branch3x3_1(x)), seven, F.max_pool2d(x, 3, stride=2)], 1)


class InceptionE(nn.Module):
    """Branches whose 3x3 convolutions are split into 1x3 and 3x1; 2048 channels out."""

    def __init__(self, inside: int, *, maximum: bool) -> None:
        """Pool by the maximum or the average: the original network has a maximum in its last block."""
        super().__init__()
        wide, tall = (1, 3), (3, 1)
        self._maximum = maximum
        self.branch1x1 = Conv(inside, 320, 1)
        self.branch3x3_1 = Conv(inside, 384, 1)
        self.branch3x3_2a, self.branch3x3_2b = Conv(384, 384, wide), Conv(384, 384, tall)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = Conv(inside, 448, 1), Conv(448, 384, 3)
        self.branch3x3dbl_3a, self.branch3x3dbl_3b = Conv(384, 384, wide), Conv(384, 384, tall)
        self.branch_pool = Conv(inside, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, 2048, H, W]."""
        single, double = self.branch3x3_1(x), self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        pooled = F.max_pool2d(x, 3, stride=1, padding=1) if self._maximum else average(x)
        parts = [self.branch1x1(x), self.branch3x3_2a(single), self.branch3x3_2b(single)]
        parts += [self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double), self.branch_pool(pooled)]
        return torch.cat(parts, 1)


class InceptionNet(nn.Module):
    """The network up to its last pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3, self.Conv2d_2a_3x3 = Conv(3, 32, 3, stride=2), Conv(32, 32, 3)
        self.Conv2d_2a_3x3.conv.padding = (0, 0)
        self.Conv2d_2b_3x3, self.Conv2d_3b_1x1 = Conv(32, 64, 3), Conv(64, 80, 1)
        self.Conv2d_4a_3x3 = Conv(80, 192, 3)
        self.Conv2d_4a_3x3.conv.padding = (0, 0)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = InceptionA(192, 32), InceptionA(256, 64), InceptionA(288, 64)
        self.Mixed_6a = InceptionB()
        self.Mixed_6b, self.Mixed_6c, self.Mixed_6d = InceptionC(128), InceptionC(160), InceptionC(160)
        self.Mixed_6e, self.Mixed_7a = InceptionC(192), InceptionD()
        self.Mixed_7b, self.Mixed_7c = InceptionE(1280, maximum=False), InceptionE(2048, maximum=True)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return fp32 [B, 2048] of pixels in [0, 1], fp32 [B, 3, H, W] of any size."""
        x = F.interpolate(pixels, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(2.0 * x - 1.0)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, stride=2)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(F.max_pool2d(x, 3, stride=2))))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))
        found: Tensor = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))
        return found.mean(dim=(2, 3))
