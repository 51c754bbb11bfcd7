"""The run's one judge, for the stages that name none of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

JUDGED = ("generate", "merge", "evaluate")
"""Stages that judge images; the endpoint judges only where its own settings say so."""


def with_judge(document: Any) -> Any:
    """Return a run's document with ``judge`` as the judge of each stage that names none."""
    if not isinstance(document, Mapping) or document.get("judge") is None:
        return document
    found = dict(document)
    for section in JUDGED:
        part = found.get(section)
        if part is None or isinstance(part, Mapping):
            found[section] = {"judge": document["judge"], **(part or {})}
    return found
