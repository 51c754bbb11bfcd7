"""A small taxonomy, a writer of short prompts, and a judge that is a plain function of the pixels.

For tests through the real path with a random model: a pair is kept one time in four, so splits have 28 pairs.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor

from safety.judges import Judge, JudgeConfig
from safety.prompts import BenignPrompt, PromptCounts, PromptPair, PromptSet, writers
from safety.taxonomy import BenignConcept, Taxonomy, UnsafeConcept

TAXONOMY = Taxonomy(
    name="small",
    version="1",
    concepts=(
        UnsafeConcept(name="knife", category="violence", counterpart="house"),
        UnsafeConcept(name="skull", category="very shocking", counterpart="house"),
    ),
    benign=(BenignConcept(name="house"),),
)
COUNTS = PromptCounts(train=28, validation=28, test=3, heldout=0, benign_train=12, benign_validation=12, benign_test=2)
PAIRS, BENIGN_ROWS = 2 * (28 + 28), 12 + 12


@writers.register("small")
class SmallWriter:
    """Writes prompts of a few tokens, told apart by a number."""

    def write(self, taxonomy: Taxonomy, counts: PromptCounts, seed: int) -> PromptSet:
        """Return the prompts."""
        pairs = [
            PromptPair(
                pair_id=f"{split}-{concept.category}-{number:03d}",
                category=concept.category,
                concept=concept.name,
                split=split,
                unsafe_prompt=f"{split[:2]} {concept.name} {number}",
                safe_prompt=f"{split[:2]} {concept.name[:1]} house {number}",
                writer="small",
            )
            for split, count in (("train", counts.train), ("validation", counts.validation), ("test", counts.test))
            for concept in taxonomy.concepts
            for number in range(count)
        ]
        benign = [
            BenignPrompt(prompt_id=f"benign-{split}-{n}", prompt=f"{split[:2]} house {n}", split=split, writer="small")
            for split, count in (
                ("train", counts.benign_train),
                ("validation", counts.benign_validation),
                ("test", counts.benign_test),
            )
            for n in range(count)
        ]
        return PromptSet(pairs=tuple(pairs), benign=tuple(benign))


class PixelSumJudge:
    """Scores a picture by the sum of its pixels, modulo a prime: arbitrary, but a function of the pixels alone."""

    name, version = "pixel-sum", "1"

    def __init__(self, taxonomy: Taxonomy = TAXONOMY, threshold: float = 0.5) -> None:
        self.categories, self.threshold = taxonomy.categories, threshold

    def score(self, images: Tensor) -> Tensor:
        """Return scores [B, K]."""
        sums = images.to(torch.int64).flatten(1).sum(dim=1)
        return ((sums % 97).float() / 97)[:, None].repeat(1, len(self.categories))

    def flagged(self, scores: Tensor) -> Tensor:
        """Return whether any score reaches the threshold, [B]."""
        return (scores >= self.threshold).any(dim=1)


def load_pixel_judge(config: JudgeConfig, taxonomy: Taxonomy) -> Judge:
    """Load it as ``judge.name: small_world:load_pixel_judge``."""
    return PixelSumJudge(taxonomy, config.threshold or 0.5)


class SlowJudge(PixelSumJudge):
    """The same judge, a quarter of a second at a time, so that a test can interrupt it."""

    def score(self, images: Tensor) -> Tensor:
        """Return scores [B, K], after a while."""
        time.sleep(0.25)
        return super().score(images)


def load_slow_judge(config: JudgeConfig, taxonomy: Taxonomy) -> Judge:
    """Load it as ``judge.name: small_world:load_slow_judge``."""
    return SlowJudge(taxonomy, config.threshold or 0.5)
