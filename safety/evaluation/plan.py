"""The plan of an evaluation: prompts by a seeded draw, seeds by prompt, in fixed groups."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

from pydantic import Field

from safety.base import Config
from safety.errors import EmptyDatasetError
from safety.evaluation.records import EvaluationSplit, PlannedImage
from safety.prompts.guard import MinorSafetyFilter
from safety.prompts.rows import BenignPrompt, PromptPair, PromptRow, PromptSet
from safety.rendering import SEED_RANGE
from safety.seeds import derive_seed

BASE, MERGED = "base", "merged"
ALL_SINGLE = "all-single"
"""The expert that is trained on all categories at once, for comparison."""


class EvaluationCounts(Config):
    """Numbers of prompts to render. Of a dataset with fewer, all are used, and the report states how many."""

    test: int = Field(24, ge=1, description="unsafe prompts per category, of concepts seen in alignment")
    heldout: int = Field(8, ge=0, description="unsafe prompts per category, of concepts kept out of alignment")
    benign: int = Field(150, ge=2)
    expert_test: int = Field(16, ge=1, description="for an expert: test prompts of its own category")
    expert_others: int = Field(4, ge=1, description="for an expert: test prompts of each other category")
    expert_benign: int = Field(24, ge=1)
    shown: int = Field(6, ge=0, description="test prompts per category whose images the report shows")
    shown_heldout: int = Field(2, ge=0, description="held-out prompts per category whose images the report shows")
    shown_benign: int = Field(12, ge=0, description="benign prompts whose images the report shows")


class RenderGroup(NamedTuple):
    """Images of one model that are rendered together; the number names the group's file."""

    number: int
    model: str
    images: tuple[PlannedImage, ...]


class EvaluationPlan(NamedTuple):
    """Every image of an evaluation."""

    images: tuple[PlannedImage, ...]

    def groups(self, size: int) -> list[RenderGroup]:
        """Divide each model's images into groups of ``size``, depending on the plan alone and not on workers."""
        groups: list[RenderGroup] = []
        for model in dict.fromkeys(image.model for image in self.images):
            own = [image for image in self.images if image.model == model]
            for start in range(0, len(own), size):
                groups.append(RenderGroup(len(groups), model, tuple(own[start : start + size])))
        return groups


class _Prompts(NamedTuple):
    """The drawn prompts, in drawing order, so that a smaller count is a prefix of a larger one."""

    test: dict[str, list[PromptPair]]
    heldout: dict[str, list[PromptPair]]
    benign: list[BenignPrompt]


def plan_evaluation(
    prompts: PromptSet,
    categories: Sequence[str],
    models: Sequence[str],
    experts: Collection[str],
    counts: EvaluationCounts,
    seed: int,
) -> EvaluationPlan:
    """Return the images to render for the base and each of ``models``; prompts that the guard refuses are left out.

    Args:
        prompts: The dataset's prompts; pairs of the splits "test" and "heldout" and benign ones of "test" are used.
        categories: The taxonomy's categories.
        models: Names of the adapted models; those in ``experts`` have their category's name.
        experts: Models that get an expert's smaller counts.
        counts: Numbers of prompts of each kind.
        seed: The run seed.

    Raises:
        EmptyDatasetError: A category has no test prompt, or there is no benign test prompt.
    """
    drawn = _draw_prompts(prompts, categories, counts, seed)
    images: list[PlannedImage] = []
    for model in (BASE, *models):
        images += _expert_images(drawn, model, counts, seed) if model in experts else _full(drawn, model, counts, seed)
    images += [_image(BASE, EvaluationSplit.REFERENCE, row, seed, shown=False) for row in drawn.benign]
    return EvaluationPlan(tuple(images))


def _draw_prompts(prompts: PromptSet, categories: Sequence[str], counts: EvaluationCounts, seed: int) -> _Prompts:
    guard = MinorSafetyFilter()

    def order(row_id: str) -> int:
        return derive_seed(seed, row_id, "evaluation-order")

    def draw(split: str, category: str, most: int) -> list[PromptPair]:
        allowed = [p for p in prompts.in_split(split, category) if guard.check(p.unsafe_prompt) is None]
        return sorted(allowed, key=lambda pair: order(pair.pair_id))[:most]

    by_split = {
        split: {category: draw(split, category, most) for category in categories}
        for split, most in (("test", counts.test), ("heldout", counts.heldout))
    }
    allowed = [row for row in prompts.benign_in("test") if guard.check(row.prompt) is None]
    benign = sorted(allowed, key=lambda row: order(row.prompt_id))[: counts.benign]
    empty = [category for category, rows in by_split["test"].items() if not rows]
    if empty or len(benign) < 2:
        missing = f"no test prompt of {', '.join(empty)}" if empty else "fewer than two benign test prompts"
        raise EmptyDatasetError(
            f"the dataset has {missing}", field="generate", fix="raise the dataset's test counts, and generate again"
        )
    return _Prompts(by_split["test"], by_split["heldout"], benign)


def _full(prompts: _Prompts, model: str, counts: EvaluationCounts, seed: int) -> list[PlannedImage]:
    in_report = model in (BASE, MERGED)
    images = []
    for part, by_category, most in (
        (EvaluationSplit.TEST, prompts.test, counts.shown),
        (EvaluationSplit.HELDOUT, prompts.heldout, counts.shown_heldout),
    ):
        for rows in by_category.values():
            images += [_image(model, part, r, seed, shown=in_report and i < most) for i, r in enumerate(rows)]
    return images + [
        _image(model, EvaluationSplit.BENIGN, row, seed, shown=in_report and index < counts.shown_benign)
        for index, row in enumerate(prompts.benign)
    ]


def _expert_images(prompts: _Prompts, model: str, counts: EvaluationCounts, seed: int) -> list[PlannedImage]:
    images = []
    for category, rows in prompts.test.items():
        most = counts.expert_test if category == model else counts.expert_others
        images += [_image(model, EvaluationSplit.TEST, row, seed, shown=False) for row in rows[:most]]
    return images + [
        _image(model, EvaluationSplit.BENIGN, row, seed, shown=False) for row in prompts.benign[: counts.expert_benign]
    ]


def _image(model: str, part: EvaluationSplit, row: PromptRow, seed: int, *, shown: bool) -> PlannedImage:
    """Return the image of a pair's unsafe prompt, or of a benign one."""
    pair = row if isinstance(row, PromptPair) else None
    draw = "evaluation-reference" if part is EvaluationSplit.REFERENCE else "evaluation-noise"
    return PlannedImage(
        model=model,
        part=part,
        prompt_id=row.row_id,
        prompt=row.prompts[0],
        category="" if pair is None else pair.category,
        concept=None if pair is None else pair.concept,
        objects=row.benign_objects if isinstance(row, PromptPair) else row.objects,
        background=row.background,
        seed=derive_seed(seed, row.row_id, draw) % SEED_RANGE,
        shown=shown,
    )
