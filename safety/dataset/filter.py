"""The dataset's filter: every row is kept, or rejected with a reason."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Literal

from safety.base import Config
from safety.errors import ConfigError, ImageFault, PromptError
from safety.judges.judge import Verdict
from safety.prompts.guard import REFUSED, MinorSafetyFilter
from safety.prompts.rows import BenignPrompt, PromptPair

if TYPE_CHECKING:  # A judge's process does not need diffusers, which takes seconds to import.
    from safety.families import ModelFamily


class RejectionReason(StrEnum):
    """The reason for which a row is rejected."""

    REFUSED_PROMPT = REFUSED
    PROMPT_TOO_LONG = "prompt_too_long"
    IMAGE_EMPTY = ImageFault.EMPTY.value
    IMAGE_UNKNOWN_FORMAT = ImageFault.UNKNOWN_FORMAT.value
    IMAGE_TOO_LARGE = ImageFault.TOO_LARGE.value
    IMAGE_TOO_DEEP = ImageFault.TOO_DEEP.value
    IMAGE_CMYK = ImageFault.PRINT_COLOURS.value
    IMAGE_CORRUPT = ImageFault.CORRUPT.value
    IMAGE_UNFIT = ImageFault.OTHER.value
    SAME_IMAGE = "same_image"
    UNSAFE_NOT_SHOWN = "unsafe_not_shown"
    SAFE_FLAGGED = "safe_flagged"
    COUNTERPART_NOT_SHOWN = "counterpart_not_shown"
    CONTEXT_LOST = "context_lost"
    BENIGN_FLAGGED = "benign_flagged"
    OBJECT_NOT_SHOWN = "object_not_shown"


class PairFilterConfig(Config):
    """Optional rules for rendered rows. Two always apply: the unsafe image is flagged, the safe one is not.

    A rule about content applies where the judge names concepts and the row names the expected ones.
    """

    counterpart: bool = True
    """The safe image shows the counterpart: a winner without it teaches to draw nothing in its place."""
    context: bool = True
    """Both images show the pair's benign objects, on its background."""
    benign_objects: bool = True
    """A benign image shows every object that its prompt names."""
    published: Literal["judged", "kept"] = "judged"
    """"kept": images that a prompt source has of its rows are kept as they were published, whatever the judge says."""


def reject_prompt(prompts: tuple[str, ...], model: ModelFamily) -> RejectionReason | None:
    """Return the reason not to render a row's prompts, or None."""
    guard = MinorSafetyFilter()
    if any(guard.check(prompt) for prompt in prompts):
        return RejectionReason.REFUSED_PROMPT
    try:
        for prompt in prompts:
            model.check_prompt(prompt)
    except PromptError:
        return RejectionReason.PROMPT_TOO_LONG
    return None


def reject_pair(
    pair: PromptPair, unsafe: Verdict, safe: Verdict, config: PairFilterConfig, threshold: float
) -> RejectionReason | None:
    """Return the first rule that a pair's images break, or None when the pair is kept.

    Args:
        pair: The prompts.
        unsafe: The verdict on the unsafe prompt's image.
        safe: The verdict on the safe prompt's image.
        config: The rules.
        threshold: The judge's threshold.

    Raises:
        ConfigError: The judge does not score the pair's category.
    """
    if pair.category not in unsafe.scores:
        raise ConfigError(
            f"the judge does not score {pair.category!r}, only {', '.join(unsafe.scores)}",
            field="generate.judge",
            fix="use a judge that covers the taxonomy",
        )
    if unsafe.scores[pair.category] < threshold:
        return RejectionReason.UNSAFE_NOT_SHOWN
    if safe.flagged:
        return RejectionReason.SAFE_FLAGGED
    if config.counterpart and pair.counterpart is not None and not safe.shows((pair.counterpart,)):
        return RejectionReason.COUNTERPART_NOT_SHOWN
    if config.context and not all(
        seen.shows(pair.benign_objects) and seen.is_on(pair.background) for seen in (unsafe, safe)
    ):
        return RejectionReason.CONTEXT_LOST
    return None


def reject_benign(prompt: BenignPrompt, seen: Verdict, config: PairFilterConfig) -> RejectionReason | None:
    """Return the rule that a benign prompt's image breaks, or None when it is kept."""
    if seen.flagged:
        return RejectionReason.BENIGN_FLAGGED
    if config.benign_objects and not seen.shows(prompt.objects):
        return RejectionReason.OBJECT_NOT_SHOWN
    return None
