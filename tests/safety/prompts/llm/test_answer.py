"""Answers as language models give them: the text is found where it is there, and anything else has its reason."""

from __future__ import annotations

import pytest

from safety.prompts.llm.answer import read_answer
from safety.prompts.llm.draft import DraftReason
from safety.prompts.llm.engines.engine import ChatAnswer


@pytest.mark.parametrize(
    "said",
    [
        '{"prompt": "a red kite"}',
        'Sure! Here is the caption:\n```json\n{"prompt": "a red kite"}\n```\nEnjoy.',
        '<think>They want {"prompt": "something else"} perhaps.</think>{"prompt": "a red kite"}',
        '{not json} {"other": 1} {"prompt": "a red kite", "why": "short"}',
        '{"prompt": "a red\n kite"}',
        '{"prompt": "\\"a red kite\\" "}',
    ],
)
def test_the_text_is_found_whatever_stands_around_it(said: str) -> None:
    assert read_answer(ChatAnswer(said), "prompt") == "a red kite"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (ChatAnswer(""), DraftReason.EMPTY),
        (ChatAnswer('{"prompt": "  "}'), DraftReason.EMPTY),
        (ChatAnswer("A kite is a toy that flies in the wind."), DraftReason.MALFORMED),
        (ChatAnswer('{"prompt": "a red ki'), DraftReason.MALFORMED),
        (ChatAnswer('{"prompt": ["a red kite"]}'), DraftReason.MALFORMED),
        (ChatAnswer('{"text": "a red kite"}'), DraftReason.MALFORMED),
        (ChatAnswer("I\u2019m sorry, but I can't help with that."), DraftReason.REFUSED),
        (ChatAnswer('{"prompt": "I cannot write that."}'), DraftReason.REFUSED),
        (ChatAnswer('{"prompt": "a red kite"}', refused=True), DraftReason.REFUSED),
    ],
)
def test_anything_else_has_its_reason(answer: ChatAnswer, reason: DraftReason) -> None:
    assert read_answer(answer, "prompt") is reason


def test_a_caption_that_begins_like_a_refusal_is_none() -> None:
    assert read_answer(ChatAnswer('{"prompt": "icy can of paint"}'), "prompt") == "icy can of paint"
