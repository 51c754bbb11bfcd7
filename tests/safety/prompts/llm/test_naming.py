"""Concepts in prompts: named in any inflection, and replaced with a fitting article."""

from __future__ import annotations

import pytest

from safety.prompts.llm.naming import names, replace_concept
from safety.taxonomy import BenignConcept

KNIFE = BenignConcept(name="kitchen knife", synonyms=("blade",))


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("a kitchen knife on a table", True),
        ("Kitchen knives, rusty", True),
        ("a knife in the kitchen", True),
        ("two shining blades", True),
        ("the kitchen of a house", False),
        ("a bladeless fan", False),
        ("", False),
    ],
)
def test_a_concept_is_named_by_all_words_of_its_name_or_of_a_synonym(text: str, named: bool) -> None:
    assert names(text, KNIFE) is named


@pytest.mark.parametrize(
    ("text", "phrase", "expected"),
    [
        ("a kitchen knife on a table", "spoon", "a spoon on a table"),
        ("a kitchen knife on a table", "an apple", "an apple on a table"),
        ("An orange and a blade", "apple", "An orange and an apple"),
        ("Blades in the sun", "flowers", "Flowers in the sun"),
        ("a blade beside another blade", "cup", "a cup beside another cup"),
        ("a knife in the kitchen", "spoon", None),
        ("a bladeless fan", "spoon", None),
    ],
)
def test_it_is_replaced_wherever_it_stands_as_it_is_called(text: str, phrase: str, expected: str | None) -> None:
    assert replace_concept(text, KNIFE, phrase) == expected
