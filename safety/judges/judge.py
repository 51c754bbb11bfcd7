"""The protocol of an image judge, with name, version and threshold, and its verdict on an image.

Importing it loads no torch, so that a web server can check the judge in its config.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

from pydantic import Field

from safety.base import Config
from safety.embedded import EMBEDDED_JUDGE, EMBEDDED_PACKAGE
from safety.errors import ConfigError
from safety.registry import Registry
from safety.taxonomy import Taxonomy

if TYPE_CHECKING:
    # A web server reads judges' verdicts without torch.
    from torch import Tensor


class JudgeConfig(Config):
    """The judge that scores images, and its threshold."""

    name: str = Field(EMBEDDED_JUDGE, description="a name in the judges' registry, or 'module:loader' for one's own")
    threshold: float | None = Field(None, gt=0, lt=1, description="None is the judge's own")
    settings: Mapping[str, Any] = Field({}, description="what the named judge reads beside it: docs/judges.md")

    def __hash__(self) -> int:
        """Return a hash of what it says: its settings are a mapping, which has none."""
        return hash(self.model_dump_json())


class Judge(Protocol):
    """Scores images. Every figure that rests on a judge states its name, version and threshold."""

    @property
    def name(self) -> str:
        """Return the judge's name."""

    @property
    def version(self) -> str:
        """Return the version, which changes when its weights do."""

    @property
    def categories(self) -> tuple[str, ...]:
        """Return the K categories it scores."""

    @property
    def threshold(self) -> float:
        """Return the score from which an image is flagged."""

    def score(self, images: Tensor) -> Tensor:
        """Return unsafe scores in [0, 1], fp32 [B, K], of images uint8 [B, 3, H, W]."""

    def flagged(self, scores: Tensor) -> Tensor:
        """Return whether each image is flagged for any category, bool [B], from scores [B, K]."""


@runtime_checkable
class ConceptJudge(Protocol):
    """A judge that also names the concepts that an image shows."""

    @property
    def concept_names(self) -> tuple[str, ...]:
        """Return the concepts it knows, benign ones included."""

    @property
    def threshold(self) -> float:
        """Return the score from which a concept counts as shown."""

    def concepts(self, images: Tensor) -> Tensor:
        """Return each concept's score in [0, 1], fp32 [B, concepts], of images uint8 [B, 3, H, W]."""

    def category_scores(self, concepts: Tensor) -> Tensor:
        """Return the categories' unsafe scores [B, K] from the concepts' scores [B, concepts]."""

    def backgrounds(self, images: Tensor) -> list[str]:
        """Return the name of the background that each image is set against."""


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


class JudgeIdentity(Config):
    """Name, version and threshold of a judge: two figures compare only if these are equal."""

    name: str
    version: str
    threshold: float


def identity_of(judge: Judge) -> JudgeIdentity:
    """Return a loaded judge's identity, for every figure that rests on its scores."""
    return JudgeIdentity(name=judge.name, version=judge.version, threshold=judge.threshold)


def judge_identity(config: JudgeConfig, taxonomy: Taxonomy, *, partly: bool = False) -> JudgeIdentity:
    """Load the configured judge for its identity alone; raises as ``load_judge`` does."""
    return identity_of(load_judge(config, taxonomy, partly=partly))


def judged_categories(config: JudgeConfig, taxonomy: Taxonomy) -> tuple[str, ...]:
    """Load the configured judge for the taxonomy's categories that it covers; there may be others."""
    found = load_judge(config, taxonomy, partly=True).categories
    return tuple(name for name in taxonomy.categories if name in found)


JudgeLoader = Callable[[JudgeConfig, Taxonomy], Judge]
"""Loads a judge for a taxonomy's categories."""
judges: Registry[JudgeLoader] = Registry("judge", __package__, EMBEDDED_PACKAGE)


def load_judge(config: JudgeConfig, taxonomy: Taxonomy, *, partly: bool = False) -> Judge:
    """Load the configured judge.

    Args:
        config: Its name, threshold and settings. A judge outside the project is given by its import path, which every
            process of a cluster can import.
        taxonomy: Whose categories it judges.
        partly: Whether it may cover some of the categories only, as a second judge may.

    Raises:
        ConfigError: There is none of that name, or it does not cover the categories.
    """
    judge = judges.find(config.name, "judge.name")(config, taxonomy)
    lost = [name for name in taxonomy.categories if name not in judge.categories]
    if lost and not (partly and len(lost) < len(taxonomy.categories)):
        raise ConfigError(
            f"the judge {config.name!r} scores no {', '.join(map(repr, lost[:5]))} of the taxonomy {taxonomy.name!r}"
            f" (only {', '.join(judge.categories) or 'none of its categories'})",
            field="judge.name",
            fix="use a judge of this taxonomy's categories, several as a 'combination', or settings.covers where it judges more",
        )
    return judge


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
