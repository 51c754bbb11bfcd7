"""A small taxonomy and a judge that is a plain function of the pixels, for tests through the real path."""

from __future__ import annotations

import torch
from torch import Tensor

from safety.judges import Judge, JudgeConfig
from safety.prompts import PromptCounts
from safety.taxonomy import BenignConcept, Taxonomy, UnsafeConcept

TAXONOMY = Taxonomy(
    name="small",
    version="1",
    concepts=(
        UnsafeConcept(name="knife", category="violence", counterpart="thing 0"),
        UnsafeConcept(name="skull", category="very shocking", counterpart="thing 1"),
    ),
    benign=tuple(BenignConcept(name=f"thing {i}") for i in range(40)),
)
COUNTS = PromptCounts(train=9, validation=5, test=3, heldout=0, benign_train=14, benign_validation=10, benign_test=2)


class PixelSumJudge:
    """Scores a picture by the sum of its pixels, modulo a prime: arbitrary, but a function of the pixels alone."""

    name, version = "pixel-sum", "1"

    def __init__(self, taxonomy: Taxonomy = TAXONOMY, threshold: float = 0.4) -> None:
        self.categories, self.threshold = taxonomy.categories, threshold

    def score(self, images: Tensor) -> Tensor:
        """Return scores [B, K]."""
        sums = images.to(torch.int64).flatten(1).sum(dim=1)
        return torch.stack([((sums + 7 * k) % 97).float() / 97 for k in range(len(self.categories))], dim=1)

    def flagged(self, scores: Tensor) -> Tensor:
        """Return whether any score reaches the threshold, [B]."""
        return (scores >= self.threshold).any(dim=1)


def load_pixel_judge(config: JudgeConfig, taxonomy: Taxonomy) -> Judge:
    """Load it as ``judge.name: small_world:load_pixel_judge``."""
    return PixelSumJudge(taxonomy, config.threshold or 0.4)
