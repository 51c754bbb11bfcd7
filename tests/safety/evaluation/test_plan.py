"""Which images are planned: counts, splits, seeds, groups."""

from __future__ import annotations

from collections import Counter

import pytest

from safety.errors import EmptyDatasetError
from safety.evaluation.plan import EvaluationCounts, EvaluationPlan, plan_evaluation
from safety.evaluation.records import EvaluationSplit
from safety.prompts.rows import BenignPrompt, PromptPair, PromptSet

CATEGORIES = ("violence", "hate")
COUNTS = EvaluationCounts(
    test=5,
    heldout=3,
    benign=6,
    expert_test=4,
    expert_others=2,
    expert_benign=3,
    shown=2,
    shown_heldout=1,
    shown_benign=3,
)


def prompt_set(test: int = 8, benign: int = 10) -> PromptSet:
    pairs = [
        PromptPair(
            pair_id=f"{category}-{split}-{i}",
            category=category,
            concept="kitchen knife",
            split=split,
            unsafe_prompt=f"a knife {category} {split} {i}",
            safe_prompt=f"a spoon {category} {split} {i}",
            writer="grammar",
        )
        for category in CATEGORIES
        for split, count in (("train", 4), ("validation", 4), ("test", test), ("heldout", 4))
        for i in range(count)
    ]
    rows = [
        BenignPrompt(prompt_id=f"benign-{split}-{i}", prompt=f"a house {split} {i}", split=split, writer="grammar")
        for split in ("train", "test")
        for i in range(benign)
    ]
    return PromptSet(pairs=tuple(pairs), benign=tuple(rows))


def plan(counts: EvaluationCounts = COUNTS, seed: int = 0) -> EvaluationPlan:
    return plan_evaluation(prompt_set(), CATEGORIES, ["merged", "average", "violence"], {"violence"}, counts, seed)


def test_counts_by_model_and_part() -> None:
    found = Counter((image.model, image.part) for image in plan().images)
    full = {EvaluationSplit.TEST: 10, EvaluationSplit.HELDOUT: 6, EvaluationSplit.BENIGN: 6}
    expected = {(model, part): n for model in ("base", "merged", "average") for part, n in full.items()}
    expected |= {
        ("violence", EvaluationSplit.TEST): 6,
        ("violence", EvaluationSplit.BENIGN): 3,
        ("base", EvaluationSplit.REFERENCE): 6,
    }
    assert found == expected


def test_only_test_and_heldout_prompts_are_used() -> None:
    for image in plan().images:
        wanted = {EvaluationSplit.TEST: "-test-", EvaluationSplit.HELDOUT: "-heldout-"}.get(image.part, "benign-test-")
        assert wanted in image.prompt_id


def test_models_share_seeds_and_the_reference_shares_none() -> None:
    images = plan().images
    by_prompt: dict[str, set[int]] = {}
    for image in images:
        if image.part is not EvaluationSplit.REFERENCE:
            by_prompt.setdefault(image.prompt_id, set()).add(image.seed)
    assert all(len(seeds) == 1 for seeds in by_prompt.values())
    compared = {seed for seeds in by_prompt.values() for seed in seeds}
    assert compared.isdisjoint(image.seed for image in images if image.part is EvaluationSplit.REFERENCE)


def test_an_experts_prompts_are_among_the_full_models_prompts() -> None:
    images = plan().images
    full = {image.prompt_id for image in images if image.model == "base"}
    assert {image.prompt_id for image in images if image.model == "violence"} <= full


def test_a_smaller_count_is_a_part_of_a_larger_one() -> None:
    few = {i.prompt_id for i in plan(COUNTS.model_copy(update={"test": 2})).images if i.part is EvaluationSplit.TEST}
    many = {i.prompt_id for i in plan().images if i.part is EvaluationSplit.TEST}
    assert few < many
    assert {i.prompt_id for i in plan(seed=1).images} != {i.prompt_id for i in plan().images}


def test_a_dataset_with_fewer_prompts_gives_all_it_has() -> None:
    found = plan(EvaluationCounts(test=100, heldout=100, benign=100))
    base = [image for image in found.images if image.model == "base"]
    assert Counter(image.part for image in base) == {
        EvaluationSplit.TEST: 16,
        EvaluationSplit.HELDOUT: 8,
        EvaluationSplit.BENIGN: 10,
        EvaluationSplit.REFERENCE: 10,
    }


def test_base_and_merged_show_the_same_prompts_and_nobody_else_shows_any() -> None:
    shown: dict[str, set[str]] = {}
    for image in plan().images:
        if image.shown:
            shown.setdefault(image.model, set()).add(image.prompt_id)
    assert shown.keys() == {"base", "merged"}
    assert shown["base"] == shown["merged"]
    kinds = Counter("benign" if name.startswith("benign") else name.split("-")[1] for name in shown["base"])
    assert kinds == {"test": 4, "heldout": 2, "benign": 3}


def test_groups_hold_one_model_each_and_every_image_once() -> None:
    found = plan()
    groups = found.groups(4)
    assert [group.number for group in groups] == list(range(len(groups)))
    assert all({image.model for image in group.images} == {group.model} for group in groups)
    assert max(len(group.images) for group in groups) == 4
    assert Counter(i for group in groups for i in group.images) == Counter(found.images)


def test_missing_test_prompts_are_named() -> None:
    with pytest.raises(EmptyDatasetError, match="no test prompt of violence, hate"):
        plan_evaluation(prompt_set(test=0), CATEGORIES, [], set(), COUNTS, 0)
    with pytest.raises(EmptyDatasetError, match="benign"):
        plan_evaluation(prompt_set(benign=1), CATEGORIES, [], set(), COUNTS, 0)
