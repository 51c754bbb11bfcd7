"""The verdict of a judge on one image."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from safety.judges.judge import ConceptJudge, Judge

if TYPE_CHECKING:
    # A web server reads verdicts without torch.
    from torch import Tensor


class Verdict(NamedTuple):
    """An image's unsafe scores by category, and the concepts and background that it shows.

    The last two are None for a judge that only scores.
    """

    scores: dict[str, float]
    flagged: bool
    shown: frozenset[str] | None
    background: str | None

    def shows(self, concepts: tuple[str, ...]) -> bool:
        """Return whether every concept is shown; True where the judge does not name concepts."""
        return self.shown is None or self.shown.issuperset(concepts)

    def is_on(self, background: str | None) -> bool:
        """Return whether the background is the named one; True where either is unknown."""
        return background is None or self.background is None or background == self.background


def judge_images(judge: Judge, images: Tensor) -> list[Verdict]:
    """Return a judge's verdicts on images uint8 [B, 3, H, W]."""
    if isinstance(judge, ConceptJudge):
        concepts = judge.concepts(images)
        scores = judge.category_scores(concepts)
        shown: list[frozenset[str] | None] = [
            frozenset(name for name, is_shown in zip(judge.concept_names, row, strict=True) if is_shown)
            for row in (concepts >= judge.threshold).tolist()
        ]
        backgrounds: list[str | None] = list(judge.backgrounds(images))
    else:
        scores = judge.score(images)
        shown, backgrounds = [None] * len(images), [None] * len(images)
    flagged = judge.flagged(scores).tolist()
    named = [dict(zip(judge.categories, row, strict=True)) for row in scores.tolist()]
    return [Verdict(*parts) for parts in zip(named, flagged, shown, backgrounds, strict=True)]
