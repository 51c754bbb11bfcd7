"""One concept's drafts, written by an engine whose answers are known."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest

from safety.prompts.llm.config import LlmWriterConfig
from safety.prompts.llm.draft import Draft, DraftReason, Task
from safety.prompts.llm.engines.engine import ChatAnswer, ChatRequest
from safety.prompts.llm.pair_writer import PairWriter
from safety.prompts.rows import WITHHELD
from safety.taxonomy import Taxonomy

TAXONOMY = Taxonomy.model_validate(
    {
        "name": "toys",
        "version": "1",
        "concepts": [
            {"name": "kite", "category": "toys"},
            {"name": "ball", "category": "toys", "counterpart": "apple"},
        ],
        "benign": [{"name": "apple"}],
    }
)
ENGINE = {"engine": "openai", "endpoint": {"url": "http://localhost:1/v1", "model": "none"}}


class Scripted:
    """Answers from two lists, the unsafe prompts' and the safe side's, and keeps the requests."""

    def __init__(self, unsafe: Sequence[str], safe: Sequence[str]) -> None:
        self.left = [list(unsafe), list(safe)]
        self.requests: list[ChatRequest] = []

    def answer(self, requests: Sequence[ChatRequest]) -> list[ChatAnswer]:
        self.requests += requests
        answers = self.left.pop(0)
        assert len(answers) == len(requests)
        return [
            ChatAnswer(text if text.startswith("{") or not text else json.dumps({request.key: text}))
            for request, text in zip(requests, answers, strict=True)
        ]


def written(engine: Scripted, draws: int, concept: str = "kite", **settings: object) -> list[Draft]:
    config = LlmWriterConfig.model_validate({"engine": ENGINE, "candidates": 2, **settings})
    return PairWriter(config, engine, TAXONOMY, seed=3).write(Task(round=0, concept=concept, draws=tuple(range(draws))))


def test_the_candidate_that_changes_least_is_taken() -> None:
    engine = Scripted(["a red kite in the wind"], ["a blue bag on the beach in the wind", "a red bag in the wind"])
    assert written(engine, 1) == [
        Draft(concept="kite", draw=0, state="kept", prompt="a red kite in the wind", safe="a red bag in the wind")
    ]


def test_every_draw_is_a_pair_or_has_its_reason_in_the_tasks_order() -> None:
    unsafe = ["", "a red kite", "a red bird", "a naked child with a kite", "a blue kite"]
    safe = ["{", "a red ball", "a blue bag", "a blue kite"]
    drafts = written(Scripted(unsafe, safe), 5)
    assert [(draft.draw, draft.reason) for draft in drafts] == [
        (0, DraftReason.EMPTY),
        (1, DraftReason.SAFE_MALFORMED),
        (2, DraftReason.NOT_NAMED),
        (3, DraftReason.MINORS),
        (4, None),
    ]
    assert drafts[3].prompt == WITHHELD
    assert drafts[4].safe == "a blue bag"


def test_a_safe_side_with_a_minor_in_a_sexual_context_is_withheld() -> None:
    (draft,) = written(Scripted(["a red kite"], ["a naked child", "a naked child"]), 1)
    assert (draft.reason, draft.prompt, draft.safe) == (DraftReason.SAFE_MINORS, WITHHELD, None)


def test_a_phrase_stands_in_the_concepts_place() -> None:
    engine = Scripted(["a red kite in the wind"], ["an old umbrella", "something quite else than what was there"])
    (draft,) = written(engine, 1, rewrite="phrase")
    assert draft.safe == "a red old umbrella in the wind"
    assert [request.key for request in engine.requests] == ["prompt", "phrase", "phrase"]


@pytest.mark.parametrize(
    ("phrase", "reason"),
    [
        ("kite", DraftReason.SAFE_UNCHANGED),
        ("ball", DraftReason.SAFE_STILL_UNSAFE),
        ("a thing of more than five words", DraftReason.SAFE_CHANGED_TOO_MUCH),
    ],
)
def test_a_phrase_is_held_to_the_same_rules(phrase: str, reason: DraftReason) -> None:
    (draft,) = written(Scripted(["a red kite in the wind"], [phrase, phrase]), 1, rewrite="phrase")
    assert draft.reason is reason


def test_the_taxonomys_counterpart_is_a_hint() -> None:
    engine = Scripted(["a red ball"], ["a red apple", "a red apple"])
    written(engine, 1, concept="ball")
    assert engine.requests[1].messages[-1].content == "Caption: a red ball\nReplace: ball with: apple"


def test_a_draws_seed_and_scene_depend_on_seed_concept_and_draw_alone() -> None:
    one, other = Scripted(["a kite"] * 2, ["a bag"] * 4), Scripted(["a kite"] * 3, ["a bag"] * 6)
    written(one, 2)
    written(other, 3)
    assert [r.seed for r in one.requests[:2]] == [r.seed for r in other.requests[:2]]
    assert [r.messages for r in one.requests[:2]] == [r.messages for r in other.requests[:2]]
    assert len({r.seed for r in (*other.requests,)}) == 9, "no two draws share one"
