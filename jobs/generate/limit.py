"""The limit of a run's prompts, for a pilot of a run whose prompts come from a source that has its own number of them."""

from __future__ import annotations

from safety.merge.probes import spread
from safety.prompts.rows import BenignPrompt, PromptPair, PromptSet
from safety.prompts.writer import PromptCounts

PAIR_SPLITS = ("train", "validation", "test", "heldout")
BENIGN_SPLITS = ("train", "validation", "test", "text_only")


def limited(prompts: PromptSet, most: PromptCounts | None) -> PromptSet:
    """Return at most so many prompts of each split, spread over all in their order: pairs by category, benign ones in all."""
    if most is None:
        return prompts
    categories = dict.fromkeys(pair.category for pair in prompts.pairs)
    pairs: list[PromptPair] = []
    for split in PAIR_SPLITS:
        for category in categories:
            own = prompts.in_split(split, category)
            pairs += [own[place] for place in spread(len(own), getattr(most, split))]
    benign: list[BenignPrompt] = []
    for split in BENIGN_SPLITS:
        rows = prompts.benign_in(split)
        benign += [rows[place] for place in spread(len(rows), getattr(most, f"benign_{split}"))]
    return PromptSet(pairs=tuple(pairs), benign=tuple(benign))
