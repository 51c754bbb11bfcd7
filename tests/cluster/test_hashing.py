"""Names of artifacts: one document has one spelling, and different documents have different names."""

from __future__ import annotations

import hashlib
import json
import math
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from cluster.hashing import artifact_id, canonical_json, config_hash

leaves = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
documents = st.recursive(
    leaves | text, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4), max_leaves=12
)


def shuffled(document: Any, draw: random.Random) -> Any:
    if isinstance(document, dict):
        items = [(key, shuffled(value, draw)) for key, value in document.items()]
        draw.shuffle(items)
        return dict(items)
    return [shuffled(value, draw) for value in document] if isinstance(document, list) else document


@given(documents, st.randoms(use_true_random=False))
def test_the_order_of_keys_does_not_matter(document: Any, draw: random.Random) -> None:
    assert canonical_json(shuffled(document, draw)) == canonical_json(document)


@given(documents)
def test_the_spelling_says_the_document_and_is_hashed_by_sha256(document: Any) -> None:
    data = canonical_json(document)
    assert json.loads(data) == document
    assert canonical_json(json.loads(data)) == data
    assert config_hash(document) == hashlib.sha256(data).hexdigest()


@given(documents, documents)
def test_different_documents_have_different_hashes(one: Any, other: Any) -> None:
    assert (config_hash(one) == config_hash(other)) == (canonical_json(one) == canonical_json(other))
    if one != other:
        assert config_hash(one) != config_hash(other)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_json_does_not_have_are_refused(value: float) -> None:
    class Config(BaseModel):
        rate: float

    for document in (value, {"a": [value]}, Config(rate=value)):
        with pytest.raises(ValueError, match="Out of range"):
            canonical_json(document)


def test_a_model_is_hashed_as_its_document() -> None:
    class Config(BaseModel):
        rate: float = 1.5
        names: tuple[str, ...] = ("a", "é")

    assert canonical_json(Config()) == '{"names":["a","é"],"rate":1.5}'.encode()
    assert artifact_id("train", Config(), ["p"], 3) == artifact_id("train", Config().model_dump(mode="json"), ["p"], 3)


def test_every_part_of_an_artifact_s_origin_is_in_its_name() -> None:
    base = artifact_id("train", {"a": 1}, ["p", "q"], 3)
    stage, _, digits = base.partition("-")
    assert stage == "train"
    assert len(digits) == 16
    others = {
        artifact_id("merge", {"a": 1}, ["p", "q"], 3),
        artifact_id("train", {"a": 2}, ["p", "q"], 3),
        artifact_id("train", {"a": 1}, ["q", "p"], 3),
        artifact_id("train", {"a": 1}, ["pq"], 3),
        artifact_id("train", {"a": 1}, ["p", "q"], 4),
    }
    assert len({name.partition("-")[2] for name in others | {base}}) == 6
