"""Measuring rendered images with a judge that reads their colours."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from safety.evaluation.measure import clip_scores, measure_images
from safety.evaluation.records import EvaluationSplit, ImageRecord, PlannedImage
from safety.images import decode_image


class ColourJudge:
    """Sees a knife where red is full, a house where green is full; the background is always blue."""

    name, version, threshold = "colours", "1", 0.5
    categories = ("violence", "hate")
    concept_names = ("kitchen knife", "house")

    def concepts(self, images: Tensor) -> Tensor:
        return images[:, :2].float().mean(dim=(2, 3)) / 255.0

    def category_scores(self, concepts: Tensor) -> Tensor:
        return torch.stack([concepts[:, 0], torch.zeros(len(concepts))], dim=1)

    def score(self, images: Tensor) -> Tensor:
        return self.category_scores(self.concepts(images))

    def flagged(self, scores: Tensor) -> Tensor:
        return (scores >= self.threshold).any(dim=1)

    def backgrounds(self, images: Tensor) -> list[str]:
        return ["blue"] * len(images)


class BlindJudge:
    """A judge with scores but without concepts."""

    name, version, threshold = "blind", "1", 0.5
    categories = ("violence",)

    def score(self, images: Tensor) -> Tensor:
        return torch.ones(len(images), 1)

    def flagged(self, scores: Tensor) -> Tensor:
        return scores[:, 0] >= self.threshold


class MeanColours:
    """An image's mean colours; every text is pure red."""

    name, dimensions = "colours-3", 3

    def images(self, images: Tensor) -> Tensor:
        return images.float().mean(dim=(2, 3))

    def texts(self, prompts: Sequence[str]) -> Tensor:
        return torch.tensor([[1.0, 0.0, 0.0]]).expand(len(prompts), -1)


def flat(*colours: tuple[int, int, int]) -> Tensor:
    return torch.tensor(colours, dtype=torch.uint8)[:, :, None, None].expand(-1, -1, 8, 8).contiguous()


@pytest.fixture
def planned(record: Callable[..., ImageRecord]) -> list[PlannedImage]:
    rows = [record("base", "a", shown=True), record("base", "b"), record("base", "c", part=EvaluationSplit.BENIGN)]
    return [PlannedImage(**row.model_dump(include=set(PlannedImage.model_fields))) for row in rows]


def test_records_say_what_the_judge_and_the_features_see(planned: list[PlannedImage]) -> None:
    images = flat((255, 0, 0), (0, 255, 0), (255, 255, 0))
    first, second, third = measure_images(planned, images, ColourJudge(), MeanColours())
    assert [r.flagged for r in (first, second, third)] == [True, False, True]
    assert [r.present for r in (first, second, third)] == [(), ("house",), ("house",)]
    assert first.scores == (1.0, 0.0)
    assert [r.clip_score for r in (first, second, third)] == pytest.approx([100.0, 0.0, 100.0 / 2**0.5])
    assert first.background_kept is True
    # Only benign images carry features, and only shown ones their PNG.
    assert (first.features, third.features) == ((), (255.0, 255.0, 0.0))
    assert first.image is not None
    assert torch.equal(decode_image(first.image), images[0])
    assert (second.image, third.image) == (None, None)


def test_a_judge_that_cannot_name_objects_leaves_them_open(planned: list[PlannedImage]) -> None:
    found = measure_images(planned, flat((0, 0, 0), (0, 0, 0), (0, 0, 0)), BlindJudge(), MeanColours())
    assert {(r.flagged, r.present, r.seen_background, r.objects_kept) for r in found} == {(True, None, None, None)}


def test_a_second_judge_has_its_own_flag(planned: list[PlannedImage]) -> None:
    images = flat((0, 0, 0), (255, 0, 0), (0, 0, 0))
    found = measure_images(planned, images, BlindJudge(), None, ColourJudge())
    assert [(r.flagged, r.second_flagged) for r in found] == [(True, False), (True, True), (True, False)]
    assert {r.second_flagged for r in measure_images(planned, images, BlindJudge(), None)} == {None}


def test_images_and_prompts_must_be_as_many(planned: list[PlannedImage]) -> None:
    with pytest.raises(ValueError, match="1 images for 3 prompts"):
        measure_images(planned, flat((0, 0, 0)), BlindJudge(), MeanColours())


def test_clip_score_is_a_clamped_cosine_of_a_hundred() -> None:
    image = torch.tensor([[1.0, 0.0], [1.0, 1.0], [1.0, 0.0]])
    text = torch.tensor([[2.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
    assert clip_scores(image, text).tolist() == pytest.approx([100.0, 100.0 / 2**0.5, 0.0])


def test_a_shown_image_is_as_large_as_a_report_needs(planned: list[PlannedImage]) -> None:
    images = torch.zeros(3, 3, 512, 768, dtype=torch.uint8)
    first, *_ = measure_images(planned, images, ColourJudge(), MeanColours())
    assert first.image is not None
    assert decode_image(first.image).shape == (3, 171, 256)
