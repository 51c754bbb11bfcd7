"""Judges a group of rendered rows: every row leaves kept or rejected with a reason."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from safety.dataset.record import Record
from safety.errors import ImageError
from safety.images import decode_image
from safety.judges import Judge, Look, look_at
from safety.pairs import PairFilterConfig, Reason, reject_benign, reject_pair
from safety.prompts.rows import PromptPair


class GroupReviewer:
    """Holds a judge and the rules."""

    def __init__(self, judge: Judge, config: PairFilterConfig) -> None:
        """Keep the judge and the rules."""
        self.judge, self.config = judge, config

    def review(self, records: Sequence[Record]) -> list[Record]:
        """Return the records with scores and verdicts; a rejected row keeps its pictures and loses its tensors."""
        pictures = [_decoded(record) if record.kept else None for record in records]
        looks = iter(self._look([image for decoded in pictures for image in decoded or ()]))
        reviewed = []
        for record, decoded in zip(records, pictures, strict=True):
            if record.kept and decoded is None:
                record = record.model_copy(update={"reason": Reason.UNREADABLE_IMAGE, "tensors": None})
            elif decoded is not None:
                record = self._judged(record, [next(looks) for _ in decoded])
            reviewed.append(record)
        return reviewed

    def _look(self, images: list[Tensor]) -> list[Look]:
        """Return what the judge sees in pictures, which are batched when they are of one size."""
        if len({image.shape for image in images}) == 1:
            return look_at(self.judge, torch.stack(images))
        return [look for image in images for look in look_at(self.judge, image[None])]

    def _judged(self, record: Record, seen: list[Look]) -> Record:
        reason = self._reason(record, seen)
        scores = tuple({name: round(score, 6) for name, score in look.scores.items()} for look in seen)
        tensors = record.tensors if reason is None else None
        return record.model_copy(update={"scores": scores, "reason": reason, "tensors": tensors})

    def _reason(self, record: Record, seen: list[Look]) -> Reason | None:
        if not isinstance(record.row, PromptPair):
            return reject_benign(record.row, seen[0], self.config)
        if len(set(record.pixel_hashes)) == 1:
            return Reason.SAME_IMAGE
        unsafe, safe = seen
        return reject_pair(record.row, unsafe, safe, self.config, self.judge.threshold)


def _decoded(record: Record) -> list[Tensor] | None:
    """Return a record's pictures, or None when one of them cannot be read."""
    try:
        return [decode_image(data) for data in record.images]
    except ImageError:
        return None
