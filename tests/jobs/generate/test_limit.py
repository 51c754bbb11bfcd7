"""The limit of a run's prompts: by category and split, spread over all, and absent where none is set."""

from __future__ import annotations

from jobs.generate.config import GenerateConfig
from jobs.generate.limit import limited
from safety.prompts.rows import BenignPrompt, PromptPair, PromptSet
from safety.prompts.writer import PromptCounts


def prompts() -> PromptSet:
    pairs = [
        PromptPair(
            pair_id=f"{split}-{category}-{number}",
            category=category,
            concept=None,
            split=split,
            unsafe_prompt=f"{category} {split} {number}",
            safe_prompt=f"safe {category} {split} {number}",
            writer="w",
        )
        for split, count in (("train", 10), ("test", 3))
        for category in ("a", "b")
        for number in range(count)
    ]
    benign = [BenignPrompt(prompt_id=f"b-{n}", prompt=f"benign {n}", split="train", writer="w") for n in range(9)]
    return PromptSet(pairs=tuple(pairs), benign=tuple(benign))


def test_each_split_of_each_category_has_at_most_so_many_spread_over_all() -> None:
    most = PromptCounts(train=5, validation=1, test=2, heldout=0, benign_train=3, benign_validation=1)
    found = limited(prompts(), most)
    for category in ("a", "b"):
        assert [p.pair_id for p in found.in_split("train", category)] == [
            f"train-{category}-{n}" for n in (0, 2, 4, 6, 8)
        ]
        assert len(found.in_split("test", category)) == 2
    assert [row.prompt_id for row in found.benign] == ["b-0", "b-3", "b-6"]
    found.check()


def test_without_a_limit_all_are_used_and_the_recipe_is_as_it_was() -> None:
    every = prompts()
    assert limited(every, None) is every
    assert limited(every, PromptCounts()) == every, "fewer than the limit"
    assert "most" not in GenerateConfig().recipe()
    assert GenerateConfig(most=PromptCounts(train=5)).recipe()["most"]["train"] == 5
