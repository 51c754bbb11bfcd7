"""Measurement of rendered images: the judge's verdict and CLIPScore, one record per image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch.nn.functional as F
from torch import Tensor

from safety.evaluation.records import EvaluationSplit, ImageRecord, PlannedImage
from safety.features.extractor import FeatureExtractor, TextFeatureExtractor
from safety.images import encode_png
from safety.judges.judge import Judge, judge_images

CLIP_SCORE_WEIGHT = 100.0
BENIGN_PARTS = (EvaluationSplit.BENIGN, EvaluationSplit.REFERENCE)
SHOWN_PIXELS = 256
"""Longest side of an image in a report, which holds some hundred of them."""


def clip_scores(images: Tensor, texts: Tensor) -> Tensor:
    """Return each pair's CLIPScore, fp32 [B] in [0, 100], of image and text features [B, D].

    Hessel et al. 2021 (arXiv:2104.08718) with the weight 100 that most reports use, in place of their 2.5:
    100 * max(cos, 0).
    """
    return CLIP_SCORE_WEIGHT * F.cosine_similarity(images.float(), texts.float(), dim=-1).clamp(min=0.0)


def measure_images(
    planned: Sequence[PlannedImage],
    images: Tensor,
    judge: Judge,
    features: FeatureExtractor | None,
    second: Judge | None = None,
    fid_features: FeatureExtractor | None = None,
    changes: Mapping[int, float] | None = None,
) -> list[ImageRecord]:
    """Return the records of images uint8 [B, 3, H, W] rendered for ``planned``; what is None is not measured.

    Args:
        planned: The images' prompts and seeds.
        images: The images.
        judge: Whose verdicts the figures rest on.
        features: Of CLIPScore, where they read text, and of the distances between benign images.
        second: A judge whose flags stand beside the judge's, of the categories that it covers.
        fid_features: Others for FID.
        changes: LPIPS from the base's images, by place.
    """
    if len(planned) != len(images):
        raise ValueError(f"{len(images)} images for {len(planned)} prompts")
    embedded = None if features is None else features.images(images)
    scores: list[float | None] = [None] * len(planned)
    if isinstance(features, TextFeatureExtractor) and embedded is not None:
        scores = clip_scores(embedded, features.texts([row.prompt for row in planned])).tolist()
    others: list[bool | None] = [None] * len(planned)
    if second is not None:
        flagged = second.flagged(second.score(images)).tolist()
        others = [
            flag if row.category in ("", *second.categories) else None
            for flag, row in zip(flagged, planned, strict=True)
        ]
    apart = benign_features(planned, images, fid_features)
    records = []
    for index, (row, verdict) in enumerate(zip(planned, judge_images(judge, images), strict=True)):
        benign = row.part in BENIGN_PARTS
        records.append(
            ImageRecord(
                **row.model_dump(),
                flagged=verdict.flagged,
                scores=tuple(verdict.scores.values()),
                second_flagged=others[index],
                present=None if verdict.shown is None else tuple(name for name in row.objects if name in verdict.shown),
                seen_background=verdict.background,
                clip_score=scores[index],
                features=tuple(embedded[index].tolist()) if benign and embedded is not None else (),
                fid_features=apart.get(index, ()),
                lpips=(changes or {}).get(index),
                image=_shown(images[index], {"prompt": row.prompt, "seed": str(row.seed)}) if row.shown else None,
            )
        )
    return records


def benign_features(
    planned: Sequence[PlannedImage], images: Tensor, features: FeatureExtractor | None
) -> dict[int, tuple[float, ...]]:
    """Return the features of the images of benign prompts by place; {} without features or such images."""
    places = [place for place, row in enumerate(planned) if row.part in BENIGN_PARTS]
    if features is None or not places:
        return {}
    return dict(zip(places, map(tuple, features.images(images[places]).tolist()), strict=True))


def _shown(image: Tensor, metadata: dict[str, str]) -> bytes:
    """Return an image as the report shows it, a PNG of at most ``SHOWN_PIXELS``."""
    height, width = image.shape[1:]
    scale = min(1.0, SHOWN_PIXELS / max(height, width))
    return encode_png(image, metadata, (max(1, round(width * scale)), max(1, round(height * scale))))
