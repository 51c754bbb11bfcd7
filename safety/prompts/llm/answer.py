"""A language model's answer as it comes, and the text in it: repaired where that takes no guess, else refused with a reason."""

from __future__ import annotations

import json
import re

from safety.prompts.llm.draft import DraftReason
from safety.prompts.llm.engines.engine import ChatAnswer

THOUGHT = re.compile(r"<think>.*?</think>", re.DOTALL | re.IGNORECASE)
REFUSAL = re.compile(
    r"^\W*(?:i(?:'m| am) (?:sorry|unable|not able)|sorry|i (?:can(?:'t|not| not)|won't|will not|must decline)|as an ai\b|i apologi[sz]e)",
    re.IGNORECASE,
)
CURLY = str.maketrans({"\u2018": "'", "\u2019": "'"})


def read_answer(answer: ChatAnswer, key: str) -> str | DraftReason:
    """Return the text that an answer holds under ``key``, or the reason for which it holds none.

    Around the JSON object anything may stand: a fence, prose, a reasoning model's thoughts. The first object that has the
    text counts.
    """
    if answer.refused:
        return DraftReason.REFUSED
    said = THOUGHT.sub(" ", answer.text).strip()
    if not said:
        return DraftReason.EMPTY
    text = _find(said, key)
    if text is None:
        return DraftReason.REFUSED if _refuses(said) else DraftReason.MALFORMED
    text = " ".join(text.split()).strip("\"'` ")
    if not text:
        return DraftReason.EMPTY
    return DraftReason.REFUSED if _refuses(text) else text


def _find(said: str, key: str) -> str | None:
    decoder = json.JSONDecoder(strict=False)  # a line's end inside a text is no guess
    for start in (found.start() for found in re.finditer(r"\{", said)):
        try:
            document, _ = decoder.raw_decode(said, start)
        except ValueError:
            continue
        if isinstance(document, dict) and isinstance(document.get(key), str):
            text: str = document[key]
            return text
    return None


def _refuses(text: str) -> bool:
    return REFUSAL.match(text.translate(CURLY)) is not None
