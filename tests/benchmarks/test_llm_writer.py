"""A real language model, SmolLM2-135M of a PyPI package, on the first everyday concepts: the figures of docs/writers.md in small."""

from __future__ import annotations

import pytest

from benchmarks.llm_writer import EVERYDAY, measure, smollm2
from safety.prompts.llm.config import LlmWriterConfig
from safety.prompts.llm.naming import names
from safety.taxonomy import load_taxonomy

CONCEPTS = 12


def test_there_are_fifty_everyday_concepts() -> None:
    assert len(load_taxonomy(EVERYDAY).concepts) == 50


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.timeout(900)
def test_it_writes_well_formed_pairs_of_which_most_pass() -> None:
    engine = {"engine": "transformers", **smollm2(), "temperature": 0.6, "top_p": 0.9, "max_new_tokens": 48}
    config = LlmWriterConfig.model_validate({"engine": engine, "rewrite": "phrase", "candidates": 3})
    drafts, figures = measure(config, 2, CONCEPTS)
    assert figures["draws"] == len(drafts) == 2 * CONCEPTS
    assert figures["well_formed"] == 1
    assert figures["passed"] >= 0.6
    concepts = {concept.name: concept for concept in load_taxonomy(EVERYDAY).concepts}
    for draft in drafts:
        if draft.kept:
            assert names(draft.prompt or "", concepts[draft.concept])
            assert not names(draft.safe or "", concepts[draft.concept])
