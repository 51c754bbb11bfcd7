"""A judge that is a plain function of the pixels. Ray's workers import it by its path from the repository's root."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from safety.judges.judge import Judge, JudgeConfig
from safety.taxonomy import Taxonomy


class PixelSumJudge:
    """Scores a picture by the sum of its pixels, modulo a prime: arbitrary, but a function of the pixels alone."""

    name, version = "pixel-sum", "1"

    def __init__(self, taxonomy: Taxonomy, threshold: float = 0.5) -> None:
        self.categories, self.threshold = taxonomy.categories, threshold

    def score(self, images: Tensor) -> Tensor:
        """Return scores [B, K]."""
        sums = images.to(torch.int64).flatten(1).sum(dim=1)
        return ((sums % 97).float() / 97)[:, None].repeat(1, len(self.categories))

    def flagged(self, scores: Tensor) -> Tensor:
        """Return whether any score reaches the threshold, [B]."""
        return (scores >= self.threshold).any(dim=1)


def load_pixel_judge(config: JudgeConfig, taxonomy: Taxonomy) -> Judge:
    """Load it as ``judge.name: tests.support.pixel_judge:load_pixel_judge``."""
    return PixelSumJudge(taxonomy, config.threshold or 0.5)


class SlowJudge(PixelSumJudge):
    """The same judge, a quarter of a second at a time, so that a test can interrupt it."""

    def score(self, images: Tensor) -> Tensor:
        """Return scores [B, K], after a while."""
        time.sleep(0.25)
        return super().score(images)


def load_slow_judge(config: JudgeConfig, taxonomy: Taxonomy) -> Judge:
    """Load it as ``judge.name: tests.support.pixel_judge:load_slow_judge``."""
    return SlowJudge(taxonomy, config.threshold or 0.5)
