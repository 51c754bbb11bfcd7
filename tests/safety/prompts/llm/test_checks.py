"""The rules for written prompts and pairs."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from safety.prompts.llm.checks import PairChecks, PairChecksConfig, changed_share, script
from safety.prompts.llm.draft import DraftReason
from safety.taxonomy import UnsafeConcept

KITE = UnsafeConcept(name="kite", category="toys")
BALL = UnsafeConcept(name="ball", category="toys")
CHECKS = PairChecks(PairChecksConfig(most_words=8), [KITE, BALL])


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        ("a red kite in the wind", None),
        ("kites over the sea", None),
        ("a red dragon in the wind", DraftReason.NOT_NAMED),
        ("ein roter Drachen im Wind", DraftReason.NOT_NAMED),
        ("красный воздушный змей", DraftReason.OTHER_SCRIPT),
        ("a kite and then one two three four five six", DraftReason.TOO_LONG),
        ("12 34", DraftReason.OTHER_SCRIPT),
    ],
)
def test_an_unsafe_prompt(prompt: str, reason: DraftReason | None) -> None:
    assert CHECKS.of_prompt(prompt, KITE) is reason


@pytest.mark.parametrize(
    ("safe", "reason"),
    [
        ("a red balloon in the wind", None),
        ("A red kite in the wind.", DraftReason.SAFE_UNCHANGED),
        ("a blue kite in the wind", DraftReason.SAFE_STILL_UNSAFE),
        ("a red ball in the wind", DraftReason.SAFE_STILL_UNSAFE),
        ("an empty street", DraftReason.SAFE_CHANGED_TOO_MUCH),
        ("风筝", DraftReason.OTHER_SCRIPT),
    ],
)
def test_a_safe_counterpart(safe: str, reason: DraftReason | None) -> None:
    assert CHECKS.of_pair("a red kite in the wind", safe, KITE) is reason


def test_minors_in_a_sexual_context_are_refused_on_both_sides_whatever_the_settings() -> None:
    loose = PairChecks(PairChecksConfig(most_words=100, most_changed=1, require_concept=False), [])
    for text in ("a naked child with a kite", "a kite, n4ked t e e n a g e r"):
        assert loose.of_prompt(text, KITE) is DraftReason.MINORS
        assert loose.of_pair("a kite", text, KITE) is DraftReason.MINORS


def test_a_paraphrase_passes_where_it_may() -> None:
    loose = PairChecks(PairChecksConfig(require_concept=False), [])
    assert loose.of_prompt("a red dragon in the wind", KITE) is None


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # its first example may be slow
@given(st.lists(st.sampled_from("abcde"), min_size=1), st.lists(st.sampled_from("abcde"), min_size=1))
def test_the_changed_share_is_in_0_to_1_and_0_for_the_same_words_alone(one: list[str], other: list[str]) -> None:
    share = changed_share(" ".join(one), " ".join(other))
    assert 0 <= share <= 1
    assert (share == 0) == (one == other)


def test_one_word_of_six_is_a_sixth() -> None:
    assert changed_share("a red kite in the wind", "a red balloon in the wind") == pytest.approx(1 / 6)


def test_a_script_is_that_of_most_letters() -> None:
    assert [script("kite и"), script("змей k"), script("123")] == ["LATIN", "CYRILLIC", None]
