"""Review of a group of rendered rows by a judge and the filter: each is kept, or rejected with a reason."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from safety.dataset.filter import PairFilterConfig, RejectionReason, reject_benign, reject_pair
from safety.dataset.record import Record
from safety.errors import ImageError, ImageFault
from safety.images import decode_image
from safety.judges.judge import Judge, Verdict, judge_images
from safety.prompts.rows import PromptPair


class GroupReviewer:
    """Judges records and applies the filter's rules."""

    def __init__(self, judge: Judge, config: PairFilterConfig) -> None:
        self.judge, self.config = judge, config

    def review(self, records: Sequence[Record]) -> list[Record]:
        """Return the records with scores and verdicts; a rejected row keeps its images and loses its tensors."""
        images = [_decoded(record) if record.kept else [] for record in records]
        verdicts = iter(self._judge([image for decoded in images if isinstance(decoded, list) for image in decoded]))
        reviewed = []
        for record, decoded in zip(records, images, strict=True):
            if isinstance(decoded, ImageFault):
                record = record.model_copy(update={"reason": RejectionReason(decoded.value), "tensors": None})
            elif record.kept:
                record = self._judged(record, [next(verdicts) for _ in decoded])
            reviewed.append(record)
        return reviewed

    def _judge(self, images: list[Tensor]) -> list[Verdict]:
        """Return the verdicts on images, batched when they are of one size."""
        if len({image.shape for image in images}) == 1:
            return judge_images(self.judge, torch.stack(images))
        return [verdict for image in images for verdict in judge_images(self.judge, image[None])]

    def _judged(self, record: Record, seen: list[Verdict]) -> Record:
        reason = self._reason(record, seen)
        scores = tuple({name: round(score, 6) for name, score in verdict.scores.items()} for verdict in seen)
        tensors = record.tensors if reason is None else None
        return record.model_copy(update={"scores": scores, "reason": reason, "tensors": tensors})

    def _reason(self, record: Record, seen: list[Verdict]) -> RejectionReason | None:
        as_published = bool(record.pictures) and self.config.published == "kept"
        if not isinstance(record.row, PromptPair):
            return None if as_published else reject_benign(record.row, seen[0], self.config)
        if len(set(record.pixel_hashes)) == 1:
            return RejectionReason.SAME_IMAGE
        if as_published:
            return None
        unsafe, safe = seen
        return reject_pair(record.row, unsafe, safe, self.config, self.judge.threshold)


def _decoded(record: Record) -> list[Tensor] | ImageFault:
    """Return a record's images, or the fault of the first one that cannot be read."""
    try:
        return [decode_image(data) for data in record.images]
    except ImageError as error:
        return error.fault
