"""A small taxonomy and a writer of short prompts, for tests through the real path with a random model.

The judge beside them (``pixel_judge``) keeps one pair in four, so splits have 28 pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from safety.prompts.rows import BenignPrompt, BenignSplit, PairSplit, PromptPair, PromptSet
from safety.prompts.writer import PromptCounts, writers
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
RECIPE: dict[str, Any] = {
    "objective": {"name": "anchored-dpo", "benign_weight": 30.0},
    "learning_rate": 3e-3,
    "caption_dropout": 0.1,
    "distinct_batches": 48,
}
"""Settings of an expert on random models, which the embedded model's recipe is too strong for."""
GATE: dict[str, Any] = {"benign": 1.0, "directions": None}
COUNTS = PromptCounts(
    train=28, validation=28, test=3, heldout=0, benign_train=12, benign_validation=12, benign_test=2, benign_text_only=6
)
PAIRS, BENIGN_ROWS = 2 * (28 + 28), 12 + 12


@writers.register("small")
class SmallWriter:
    """Writes prompts of a few tokens, told apart by a number."""

    version = "1"

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
            BenignPrompt(prompt_id=f"benign-{split}-{n}", prompt=f"{split[:3]} house {n}", split=split, writer="small")
            for split, count in (
                ("train", counts.benign_train),
                ("validation", counts.benign_validation),
                ("test", counts.benign_test),
                ("text_only", counts.benign_text_only),
            )
            for n in range(count)
        ]
        return PromptSet(pairs=tuple(pairs), benign=tuple(benign))


def knife_prompts(categories: Sequence[str], splits: Sequence[PairSplit], benign: Sequence[BenignSplit]) -> PromptSet:
    """Return two pairs of each category and split, and two benign prompts of each benign split."""
    pairs = [
        PromptPair(
            pair_id=f"{category}-{split}-{index}",
            category=category,
            concept=None,
            split=split,
            unsafe_prompt=f"a kitchen knife, {category} {split} {index}",
            safe_prompt=f"a spoon, {category} {split} {index}",
            writer="grammar",
        )
        for category in categories
        for split in splits
        for index in range(2)
    ]
    rows = [
        BenignPrompt(prompt_id=f"b-{split}-{i}", prompt=f"a house {split} {i}", split=split, writer="grammar")
        for split in benign
        for i in range(2)
    ]
    return PromptSet(pairs=tuple(pairs), benign=tuple(rows))
