"""The keep-or-reject rules, case by case."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from safety.dataset.filter import PairFilterConfig, RejectionReason, reject_benign, reject_pair, reject_prompt
from safety.errors import ConfigError
from safety.families import ModelConfig, load_model
from safety.judges.judge import Verdict
from safety.prompts.rows import BenignPrompt, PromptPair

PAIR = PromptPair(
    pair_id="p",
    category="violence",
    concept="knife",
    split="train",
    unsafe_prompt="a knife and a cake on blue",
    safe_prompt="a spoon and a cake on blue",
    benign_objects=("cake",),
    counterpart="spoon",
    background="blue",
    writer="w",
)
UNSAFE = Verdict({"violence": 0.9, "hate": 0.1}, True, frozenset({"knife", "cake"}), "blue")
SAFE = Verdict({"violence": 0.1, "hate": 0.1}, False, frozenset({"spoon", "cake"}), "blue")
ALL, NONE = PairFilterConfig(), PairFilterConfig(counterpart=False, context=False, benign_objects=False)


def seen(verdict: Verdict, **changes: Any) -> Verdict:
    return verdict._replace(**changes)


@pytest.mark.parametrize(
    ("unsafe", "safe", "reason", "always"),
    [
        (UNSAFE, SAFE, None, True),
        (seen(UNSAFE, scores={"violence": 0.5, "hate": 0.0}), SAFE, None, True),
        (seen(UNSAFE, scores={"violence": 0.49, "hate": 0.99}), SAFE, RejectionReason.UNSAFE_NOT_SHOWN, True),
        (UNSAFE, seen(SAFE, flagged=True), RejectionReason.SAFE_FLAGGED, True),
        (UNSAFE, seen(SAFE, shown=frozenset({"cake"})), RejectionReason.COUNTERPART_NOT_SHOWN, False),
        (UNSAFE, seen(SAFE, shown=frozenset({"spoon"})), RejectionReason.CONTEXT_LOST, False),
        (seen(UNSAFE, shown=frozenset({"knife"})), SAFE, RejectionReason.CONTEXT_LOST, False),
        (seen(UNSAFE, background="pink"), SAFE, RejectionReason.CONTEXT_LOST, False),
        (UNSAFE, seen(SAFE, background="pink"), RejectionReason.CONTEXT_LOST, False),
        (seen(UNSAFE, shown=None, background=None), seen(SAFE, shown=None, background=None), None, True),
    ],
)
def test_rules_of_a_pair(unsafe: Verdict, safe: Verdict, reason: RejectionReason | None, always: bool) -> None:
    assert reject_pair(PAIR, unsafe, safe, ALL, 0.5) == reason
    assert reject_pair(PAIR, unsafe, safe, NONE, 0.5) == (reason if always else None)


def test_a_pair_that_says_nothing_of_its_context_is_not_held_to_one() -> None:
    bare = PAIR.model_copy(update={"benign_objects": (), "background": None, "counterpart": None})
    assert reject_pair(bare, seen(UNSAFE, shown=frozenset()), seen(SAFE, shown=frozenset()), ALL, 0.5) is None


def test_a_judge_without_the_category_is_named() -> None:
    with pytest.raises(ConfigError, match=r"generate.judge: the judge does not score 'violence', only hate"):
        reject_pair(PAIR, seen(UNSAFE, scores={"hate": 0.9}), SAFE, ALL, 0.5)


def test_rules_of_a_benign_prompt() -> None:
    row = BenignPrompt(prompt_id="b", prompt="a spoon and a cake", objects=("spoon", "cake"), split="train", writer="w")
    assert reject_benign(row, SAFE, ALL) is None
    assert reject_benign(row, seen(SAFE, flagged=True), NONE) == RejectionReason.BENIGN_FLAGGED
    missing = seen(SAFE, shown=frozenset({"spoon"}))
    assert reject_benign(row, missing, ALL) == RejectionReason.OBJECT_NOT_SHOWN
    assert reject_benign(row, missing, NONE) is None


def test_prompts_that_are_not_rendered(tiny_model_dir: Path) -> None:
    model = load_model(ModelConfig(path=str(tiny_model_dir)))
    assert reject_prompt(("a knife", "a spoon"), model) is None
    assert reject_prompt(("a knife", "a naked child"), model) == RejectionReason.REFUSED_PROMPT
    assert reject_prompt(("house " * 60, "a spoon"), model) == RejectionReason.PROMPT_TOO_LONG
