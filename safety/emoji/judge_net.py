"""The network of the emoji world's judge, a small convolutional one that finds concepts and their places.

It classifies every cell of an 8x8 grid as one concept or nothing; a concept's score for an image is its largest
probability over the cells. ``safety.emoji.build.judge_training`` trains it.
"""

from __future__ import annotations

import torch.nn.functional as F
from pydantic import Field
from safetensors.torch import load
from torch import Tensor, nn

from safety.base import Config


class JudgeNetConfig(Config):
    """Shape of the judge's network."""

    widths: tuple[int, int, int] = (32, 64, 128)
    dropout: float = Field(0.2, ge=0, lt=1)


class _Block(nn.Module):
    """Two 3x3 convolutions with batch norm and a skip."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(outside), nn.BatchNorm2d(outside)])
        self.skip = nn.Conv2d(inside, outside, 1, stride) if (inside, stride) != (outside, 1) else nn.Identity()

    def forward(self, features: Tensor) -> Tensor:
        inner = F.relu(self.norms[0](self.first(features)))
        out: Tensor = F.relu(self.skip(features) + self.norms[1](self.second(inner)))
        return out


class JudgeNet(nn.Module):
    """Maps images [B, 3, 64, 64] in [-1, 1] to cell logits [B, concepts + 1, 8, 8]; the last class is "nothing"."""

    def __init__(self, concepts: int, config: JudgeNetConfig) -> None:
        super().__init__()
        low, middle, high = config.widths
        self.stem = nn.Conv2d(3, low, 3, 1, 1)
        self.blocks = nn.Sequential(
            _Block(low, low, 2),
            _Block(low, middle, 2),
            _Block(middle, middle, 1),
            _Block(middle, high, 2),
            _Block(high, high, 1),
        )
        self.context = nn.Conv2d(high, high, 3, 1, 1)
        self.dropout = nn.Dropout2d(config.dropout)
        self.head = nn.Conv2d(high, concepts + 1, 1)

    def features(self, images: Tensor) -> Tensor:
        """Return the cells' features [B, C, 8, 8]."""
        return F.relu(self.context(self.blocks(F.relu(self.stem(images)))))

    def forward(self, images: Tensor) -> Tensor:
        """Return the cells' logits [B, concepts + 1, 8, 8]."""
        logits: Tensor = self.head(self.dropout(self.features(images)))
        return logits


def load_weights(net: JudgeNet, data: bytes) -> None:
    """Read a judge's weights, a safetensors file's bytes in half precision, into ``net``."""
    state = load(data)
    net.load_state_dict({name: value.float() if value.is_floating_point() else value for name, value in state.items()})


def concept_scores(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Return each concept's score in [0, 1], [B, concepts]: its largest probability over the cells."""
    return (logits.float() / temperature).softmax(dim=1)[:, :-1].amax(dim=(2, 3))
