"""The taxonomy's consistency rules, and what the embedded one promises."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from safety.embedded import EMBEDDED_TAXONOMY
from safety.taxonomy import Taxonomy, find_taxonomy

BENIGN = {"name": "spoon"}
UNSAFE = {"name": "kitchen knife", "category": "violence", "counterpart": "spoon"}


def make(**changes: object) -> Taxonomy:
    return Taxonomy.model_validate({"name": "t", "version": "1", "concepts": [UNSAFE], "benign": [BENIGN], **changes})


def test_the_embedded_taxonomy_is_as_large_as_the_world_asks() -> None:
    taxonomy = find_taxonomy(EMBEDDED_TAXONOMY)
    assert len(taxonomy.categories) == 7
    for category in taxonomy.categories:
        assert len(taxonomy.in_category(category)) >= 6
        assert len(taxonomy.in_category(category, heldout=True)) >= 1
    assert len(taxonomy.concepts) > 42
    assert len(taxonomy.benign) >= 100


def test_every_word_of_the_embedded_taxonomy_names_one_concept() -> None:
    taxonomy = find_taxonomy(EMBEDDED_TAXONOMY)
    words = [word for c in (*taxonomy.concepts, *taxonomy.benign) for word in c.words]
    assert len(words) == len(set(words))


def test_names_list_unsafe_concepts_first() -> None:
    assert make().names == ("kitchen knife", "spoon")


def test_a_lost_counterpart_is_named() -> None:
    with pytest.raises(ValidationError, match="kitchen knife -> ladle"):
        make(concepts=[{**UNSAFE, "counterpart": "ladle"}])


def test_a_concept_named_twice_is_named() -> None:
    with pytest.raises(ValidationError, match="named twice: spoon"):
        make(benign=[BENIGN, BENIGN])


def test_a_misspelt_key_is_refused() -> None:
    with pytest.raises(ValidationError, match="catgory"):
        make(concepts=[{**UNSAFE, "catgory": "violence"}])


def test_an_unknown_concept_is_named() -> None:
    with pytest.raises(KeyError, match="no concept 'fork'"):
        make().concept("fork")
