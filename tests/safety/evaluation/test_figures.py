"""IP, benign quality and context against tables counted by hand."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from safety.errors import EmptyDatasetError
from safety.evaluation.benign import BASE_IMAGES, benign_fid, benign_quality, fid_to_base
from safety.evaluation.bootstrap import BootstrapConfig
from safety.evaluation.context import measure_context
from safety.evaluation.ip import inappropriate_probability, ip_by_concept, ip_difference
from safety.evaluation.moments import moments_of
from safety.evaluation.records import EvaluationSplit, ImageRecord

CONFIG = BootstrapConfig(resamples=300)
CATEGORIES = ("violence", "hate", "sexual")
Maker = Callable[..., ImageRecord]


def test_ip_counts_each_category_of_one_model_and_part(record: Maker) -> None:
    rows = [record("base", f"v{i}", flagged=i < 3) for i in range(4)]
    rows += [record("base", f"h{i}", flagged=i < 1, category="hate") for i in range(2)]
    rows += [record("base", f"x{i}", flagged=True, part=EvaluationSplit.HELDOUT) for i in range(5)]
    rows += [record("merged", f"v{i}") for i in range(4)]
    found = inappropriate_probability(rows, "base", EvaluationSplit.TEST, CATEGORIES, CONFIG, 0)
    assert {name: (figure.value, figure.n) for name, figure in found.items()} == {
        "overall": (0.625, 6),
        "violence": (0.75, 4),
        "hate": (0.5, 2),
    }
    assert (
        inappropriate_probability(rows, "base", EvaluationSplit.HELDOUT, CATEGORIES, CONFIG, 0)["overall"].value == 1.0
    )
    assert inappropriate_probability(rows, "merged", EvaluationSplit.HELDOUT, CATEGORIES, CONFIG, 0) == {}


def test_ip_by_concept_counts_test_and_heldout_prompts(record: Maker) -> None:
    rows = [
        record("base", "a", flagged=True),
        record("base", "b"),
        record("base", "c", concept="axe", part=EvaluationSplit.HELDOUT),
    ]
    rows.append(record("base", "d", part=EvaluationSplit.BENIGN))
    assert ip_by_concept(rows, "base") == {"kitchen knife": (1, 2), "axe": (0, 1)}


def test_the_difference_pairs_prompts_that_both_rendered(record: Maker) -> None:
    merged = [record("merged", f"v{i}", flagged=i == 9) for i in range(10)]
    other = [record("average", f"v{i}", flagged=i < 4) for i in range(5)]
    found = ip_difference([*merged, *other], "merged", "average", CATEGORIES, CONFIG, 0)
    assert found is not None
    assert (found.value, found.n) == (-0.8, 5)
    assert ip_difference(merged, "merged", "average", CATEGORIES, CONFIG, 0) is None


def test_benign_quality_by_hand(record: Maker) -> None:
    def benign(prompt_id: str, **changed: object) -> ImageRecord:
        return record("base", prompt_id, part=EvaluationSplit.BENIGN, features=(1.0, 2.0), **changed)

    rows = [
        benign("a", objects=("house", "cake"), present=("house", "cake"), clip_score=20.0),
        benign("b", objects=("house", "cake"), present=("cake",), clip_score=30.0),
        benign("c", clip_score=40.0, flagged=True),
        benign("d", clip_score=30.0),
    ]
    found = benign_quality(rows, "base", "f", CONFIG, 0)
    assert (found.objects_present, found.clip_score, found.flagged, found.n) == (0.75, 30.0, 0.25, 4)
    assert found.fid is None
    assert found.intervals["objects_present"].low <= 0.75 <= found.intervals["objects_present"].high
    with pytest.raises(EmptyDatasetError, match="no benign image of 'merged'"):
        benign_quality(rows, "merged", "f", CONFIG, 0)


def test_fid_is_measured_against_the_bases_other_seeds(record: Maker) -> None:
    points = np.random.default_rng(0).normal(size=(40, 2))

    def render(model: str, part: EvaluationSplit, shift: float, count: int = 40) -> list[ImageRecord]:
        return [
            record(
                model,
                f"p{i}",
                part=part,
                features=tuple(points[i if part is EvaluationSplit.BENIGN else i - 1] + shift),
            )
            for i in range(count)
        ]

    rows = (
        render("base", EvaluationSplit.REFERENCE, 0.0)
        + render("base", EvaluationSplit.BENIGN, 0.0)
        + render("merged", EvaluationSplit.BENIGN, 2.0)
    )
    rows += render("violence", EvaluationSplit.BENIGN, 0.0, count=8)
    floor, moved = benign_fid(rows, "base", "f"), benign_fid(rows, "merged", "f")
    assert floor is not None
    assert moved is not None
    # The two sets hold the same points, so the floor is nothing and a shift by (2, 2) is its squared length.
    assert floor.value == pytest.approx(0.0, abs=1e-8)
    assert moved.value == pytest.approx(8.0, rel=1e-6)
    assert floor.reference == moved.reference == BASE_IMAGES
    assert benign_fid(rows, "violence", "f") is None


def test_fid_is_measured_against_real_images_where_the_features_have_their_moments(
    record: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = np.random.default_rng(0).normal(size=(40, 2))
    rows = [record("base", f"p{i}", part=EvaluationSplit.BENIGN, features=tuple(points[i] + 1.0)) for i in range(40)]
    rows += [record("base", f"p{i}", part=EvaluationSplit.REFERENCE, features=tuple(points[i])) for i in range(40)]
    real = moments_of(torch.tensor(points - 1.0), "f", "forty real images")
    monkeypatch.setattr("safety.evaluation.benign.real_moments", {"f": real}.get)
    found, moved = benign_fid(rows, "base", "f"), fid_to_base(rows, "base", "f")
    assert found is not None
    assert moved is not None
    # Shifts by (2, 2) from the real images and by (1, 1) from the base's other seeds.
    assert (found.value, found.reference) == (pytest.approx(8.0, rel=1e-6), "forty real images")
    assert (moved.value, moved.reference) == (pytest.approx(2.0, rel=1e-6), BASE_IMAGES)


def test_context_needs_object_and_background_but_only_what_was_named(record: Maker) -> None:
    rows = [
        record("base", "both"),
        record("base", "object-lost", present=()),
        record("base", "background-lost", seen_background="green"),
        record("base", "single", objects=(), present=()),
        record("base", "single-lost", objects=(), present=(), seen_background="pink"),
    ]
    found = measure_context(rows, "base", CONFIG, 0)
    assert found is not None
    assert (found.kept.value, found.kept.n) == (0.4, 5)
    assert found.object_kept is not None
    assert found.background_kept is not None
    assert (found.object_kept.value, found.object_kept.n) == (pytest.approx(2 / 3), 3)
    assert (found.background_kept.value, found.background_kept.n) == (0.6, 5)


def test_context_relative_to_the_base_counts_only_what_the_base_kept(record: Maker) -> None:
    rows = [record("base", "a"), record("base", "b"), record("base", "c", present=())]
    rows += [record("merged", "a"), record("merged", "b", seen_background="pink"), record("merged", "c")]
    found = measure_context(rows, "merged", CONFIG, 0)
    assert found is not None
    assert found.kept.value == pytest.approx(2 / 3)
    assert found.kept_of_base is not None
    assert (found.kept_of_base.value, found.kept_of_base.n) == (0.5, 2)


def test_a_judge_that_cannot_name_objects_gives_no_figure_for_them(record: Maker) -> None:
    blind = {"present": None, "seen_background": None}
    assert measure_context([record("base", "a", **blind)], "base", CONFIG, 0) is None
    rows = [record("base", f"b{i}", part=EvaluationSplit.BENIGN, **blind) for i in range(3)]
    found = benign_quality(rows, "base", "f", CONFIG, 0)
    assert found.objects_present is None
    assert "objects_present" not in found.intervals
