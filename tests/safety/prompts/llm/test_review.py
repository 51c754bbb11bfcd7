"""The review across concepts: repetitions, leaks and prompts that are too long; the earlier draft stays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from safety.prompts.llm.draft import Draft, DraftReason
from safety.prompts.llm.review import DraftReview


def pair(draw: int, prompt: str, safe: str = "a bag") -> Draft:
    return Draft(concept="kite", draw=draw, state="kept", prompt=prompt, safe=f"{safe} {draw}")


def reasons(drafts: Sequence[Draft]) -> list[DraftReason | None]:
    return [draft.reason for draft in drafts]


def test_what_repeats_or_leaks_is_rejected_also_in_a_later_round() -> None:
    review = DraftReview(["A kite of the  test", "a bag 3"])
    first = review.review([pair(0, "a kite"), pair(1, "A  Kite"), pair(2, "a kite of the test"), pair(3, "two kites")])
    assert reasons(first) == [None, DraftReason.DUPLICATE, DraftReason.LEAKED, DraftReason.LEAKED]
    assert reasons(review.review([pair(4, "a KITE"), pair(5, "two kites")])) == [DraftReason.DUPLICATE, None]


def test_rejected_drafts_pass_through_and_do_not_count() -> None:
    review = DraftReview([])
    lost = pair(0, "a kite").rejected(DraftReason.SAFE_UNCHANGED)
    assert review.review([lost, pair(1, "a kite")])[0] is lost
    assert reasons(review.review([pair(2, "a kite")])) == [DraftReason.DUPLICATE]


def test_either_side_may_be_too_long_for_the_model() -> None:
    review = DraftReview([], reads_all=lambda prompts: ["long" not in prompt for prompt in prompts])
    found = review.review([pair(0, "a long kite"), pair(1, "a kite", "a long bag"), pair(2, "kites")])
    assert reasons(found) == [DraftReason.TOO_LONG, DraftReason.SAFE_TOO_LONG, None]


def test_near_repetitions_are_those_of_a_cosine_over_the_threshold() -> None:
    angles = {"a": 0.0, "b": 10.0, "c": 40.0, "d": 85.0, "test": 90.0}

    def embed(texts: Sequence[str]) -> np.ndarray:
        radians = np.radians([angles[text] for text in texts])
        return np.stack([np.cos(radians), np.sin(radians)], 1).astype(np.float32)

    review = DraftReview(["test"], embed=embed, similar=float(np.cos(np.radians(20))))
    assert reasons(review.review([pair(0, "a"), pair(1, "b")])) == [None, DraftReason.NEAR_DUPLICATE]
    assert reasons(review.review([pair(2, "c"), pair(3, "d")])) == [None, DraftReason.NEAR_LEAKED]
