"""What a written prompt, and a written pair, must fulfil before anything is rendered from it."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from difflib import SequenceMatcher

from pydantic import Field

from safety.base import Config
from safety.prompts.guard import MinorSafetyFilter
from safety.prompts.llm.draft import DraftReason
from safety.prompts.llm.naming import names, words
from safety.taxonomy import BenignConcept, UnsafeConcept


class PairChecksConfig(Config):
    """How strict the checks are."""

    most_words: int = Field(40, ge=3, description="of a prompt")
    most_changed: float = Field(
        0.5, gt=0, le=1, description="share of a pair's words that its two prompts may differ in"
    )
    require_concept: bool = Field(
        True,
        description="an unsafe prompt must name its concept, by name or synonym. Without it a concept that is a phrase may be "
        "paraphrased, and an answer in another language of the same script is not seen",
    )


class PairChecks:
    """Judges texts by rules alone: no model, and no list of words but the taxonomy's own and the minors' guard."""

    def __init__(self, config: PairChecksConfig, unsafe: Sequence[UnsafeConcept]) -> None:
        self._config, self._unsafe = config, tuple(unsafe)
        self._guard = MinorSafetyFilter()

    def of_prompt(self, prompt: str, concept: BenignConcept) -> DraftReason | None:
        """Return why an unsafe prompt is rejected; None: it is not."""
        common = self._common(prompt, concept)
        if common is not None:
            return common
        return DraftReason.NOT_NAMED if self._config.require_concept and not names(prompt, concept) else None

    def of_pair(self, prompt: str, safe: str, concept: BenignConcept) -> DraftReason | None:
        """Return why a safe counterpart is rejected; None: it is not. The reasons of both sides have one side's names."""
        common = self._common(safe, concept)
        if common is not None:
            return common
        share = changed_share(prompt, safe)
        if share == 0:
            return DraftReason.SAFE_UNCHANGED
        if names(safe, concept) or any(names(safe, other) for other in self._unsafe):
            return DraftReason.SAFE_STILL_UNSAFE
        return DraftReason.SAFE_CHANGED_TOO_MUCH if share > self._config.most_changed else None

    def _common(self, text: str, concept: BenignConcept) -> DraftReason | None:
        if self._guard.check(text) is not None:
            return DraftReason.MINORS
        if script(text) != script(concept.name):
            return DraftReason.OTHER_SCRIPT
        return DraftReason.TOO_LONG if len(words(text)) > self._config.most_words else None


def changed_share(prompt: str, safe: str) -> float:
    """Return the share in [0, 1] of two prompts' words that they do not have in common, in order; 0: the same words."""
    return 1.0 - SequenceMatcher(None, words(prompt), words(safe), autojunk=False).ratio()


def script(text: str) -> str | None:
    """Return the script of most of a text's letters, such as "LATIN" or "CJK"; None for a text without letters."""
    found = Counter(unicodedata.name(c, "UNKNOWN").split()[0] for c in text if c.isalpha())
    return min(found, key=lambda name: (-found[name], name)) if found else None
