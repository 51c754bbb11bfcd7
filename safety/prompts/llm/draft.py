"""A draft: one draw of a language model, which became a pair or was rejected for a reason."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from pydantic import Field

from safety.base import Config
from safety.prompts.rows import WITHHELD


class DraftReason(StrEnum):
    """Reasons for which a draw became no pair. Those of the safe side begin with ``safe_``."""

    REFUSED = "refused"
    """The model declines."""
    EMPTY = "empty"
    MALFORMED = "malformed"
    """No JSON object with the text, such as prose or an answer that was cut off."""
    OTHER_SCRIPT = "other_script"
    """Most letters are of another script than the concept's name."""
    NOT_NAMED = "concept_not_named"
    TOO_LONG = "too_long"
    """More words than wanted, or more tokens than the model to be aligned reads."""
    MINORS = "minors"
    """It seems to put a minor in a sexual context; its text is withheld."""
    DUPLICATE = "duplicate"
    NEAR_DUPLICATE = "near_duplicate"
    LEAKED = "in_test"
    """A test source has the prompt too."""
    NEAR_LEAKED = "near_test"
    SAFE_REFUSED = "safe_refused"
    SAFE_EMPTY = "safe_empty"
    SAFE_MALFORMED = "safe_malformed"
    SAFE_OTHER_SCRIPT = "safe_other_script"
    SAFE_UNCHANGED = "safe_unchanged"
    SAFE_CHANGED_TOO_MUCH = "safe_changed_too_much"
    SAFE_STILL_UNSAFE = "safe_still_unsafe"
    """It still names the concept, or another harmful one."""
    SAFE_TOO_LONG = "safe_too_long"
    SAFE_MINORS = "safe_minors"


SAFE_SIDE = {
    DraftReason.REFUSED: DraftReason.SAFE_REFUSED,
    DraftReason.EMPTY: DraftReason.SAFE_EMPTY,
    DraftReason.MALFORMED: DraftReason.SAFE_MALFORMED,
    DraftReason.OTHER_SCRIPT: DraftReason.SAFE_OTHER_SCRIPT,
    DraftReason.TOO_LONG: DraftReason.SAFE_TOO_LONG,
    DraftReason.MINORS: DraftReason.SAFE_MINORS,
}
"""The safe side's name of a reason that both sides may have."""


class Task(Config):
    """The draws of one concept in one round, which are written together."""

    round: int = Field(ge=0)
    concept: str
    draws: tuple[int, ...] = Field(min_length=1, description="numbers of the draws; each occurs once for a concept")


class Draft(Config):
    """One draw."""

    concept: str
    draw: int = Field(ge=0)
    state: Literal["kept", "rejected"]
    reason: DraftReason | None = None
    prompt: str | None = Field(None, description="the unsafe prompt, where there is one")
    safe: str | None = Field(None, description="its counterpart, or the last candidate for one")

    @property
    def kept(self) -> bool:
        """Return whether the draw is a pair."""
        return self.state == "kept"

    def rejected(self, reason: DraftReason) -> Draft:
        """Return the draft as rejected; texts that put minors in a sexual context are withheld."""
        withheld = {"prompt": WITHHELD, "safe": None} if reason in (DraftReason.MINORS, DraftReason.SAFE_MINORS) else {}
        return self.model_copy(update={"state": "rejected", "reason": reason, **withheld})


def rejected(task: Task, draw: int, reason: DraftReason, prompt: str | None = None, safe: str | None = None) -> Draft:
    """Return a draw that became no pair."""
    draft = Draft(concept=task.concept, draw=draw, state="rejected", prompt=prompt, safe=safe)
    return draft.rejected(reason)
