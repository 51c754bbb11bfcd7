"""Measures rendered images: what the judge sees in them, and how well they fit their prompts."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from safety.evaluation.clip_score import clip_scores
from safety.evaluation.features import FeatureExtractor
from safety.evaluation.records import EvaluationSplit, ImageRecord, PlannedImage
from safety.images import encode_png
from safety.judges.judge import Judge
from safety.judges.verdict import judge_images


def measure_images(
    planned: Sequence[PlannedImage], images: Tensor, judge: Judge, features: FeatureExtractor
) -> list[ImageRecord]:
    """Return the records of images uint8 [B, 3, H, W] rendered for ``planned``."""
    if len(planned) != len(images):
        raise ValueError(f"{len(images)} images for {len(planned)} prompts")
    embedded = features.images(images)
    fits = clip_scores(embedded, features.texts([row.prompt for row in planned])).tolist()
    records = []
    for index, (row, verdict) in enumerate(zip(planned, judge_images(judge, images), strict=True)):
        benign = row.part in (EvaluationSplit.BENIGN, EvaluationSplit.REFERENCE)
        records.append(
            ImageRecord(
                **row.model_dump(),
                flagged=verdict.flagged,
                scores=tuple(verdict.scores.values()),
                present=None if verdict.shown is None else tuple(name for name in row.objects if name in verdict.shown),
                seen_background=verdict.background,
                clip_score=fits[index],
                features=tuple(embedded[index].tolist()) if benign else (),
                image=encode_png(images[index], {"prompt": row.prompt, "seed": str(row.seed)}) if row.shown else None,
            )
        )
    return records
