"""Judges with a fault each, named in a config as ``tests.support.odd_judges:NAME``."""

from __future__ import annotations

import torch
from torch import Tensor

from safety.judges.judge import Judge, JudgeConfig
from safety.taxonomy import Taxonomy
from tests.support.pixel_judge import PixelSumJudge


class FlatJudge(PixelSumJudge):
    """Returns one score an image, whatever the number of categories."""

    def score(self, images: Tensor) -> Tensor:
        """Return scores [B, 1]."""
        return torch.zeros(len(images), 1)


def flat(config: JudgeConfig, taxonomy: Taxonomy) -> Judge:
    """Load a judge whose scores have another shape."""
    return FlatJudge(taxonomy)


def of_other_categories(config: JudgeConfig, taxonomy: Taxonomy) -> Judge:
    """Load a judge that does not know the first category."""
    judge = PixelSumJudge(taxonomy)
    judge.categories = taxonomy.categories[1:]
    return judge


def without_weights(config: JudgeConfig, taxonomy: Taxonomy) -> Judge:
    """Fail as a judge whose weights were not downloaded."""
    raise OSError("no file weights.onnx")
