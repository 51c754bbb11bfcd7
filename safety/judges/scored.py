"""A judge of fixed categories that gives one score per image and category: what most implementations share."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor


class ScoredJudge(ABC):
    """Flags an image from a threshold in any of its categories (see ``Judge``)."""

    def __init__(self, name: str, version: str, categories: tuple[str, ...], threshold: float, batch: int = 16) -> None:
        self.name, self.version, self.categories, self.threshold = name, version, categories, threshold
        self._batch = batch

    @abstractmethod
    def one_batch(self, images: Tensor) -> Tensor:
        """Return unsafe scores in [0, 1], fp32 [B, K] or one for all categories [B], of images uint8 [B, 3, H, W]."""

    @torch.no_grad()
    def score(self, images: Tensor) -> Tensor:
        """Return unsafe scores in [0, 1], fp32 [B, K], of images uint8 [B, 3, H, W]."""
        parts = [self.one_batch(part).float().cpu() for part in torch.split(images, self._batch)]
        found = torch.cat(parts) if parts else torch.zeros(0)
        return found[:, None].expand(-1, len(self.categories)).contiguous() if found.ndim == 1 else found

    def flagged(self, scores: Tensor) -> Tensor:
        """Return whether each image is flagged for any category, bool [B]."""
        return (scores >= self.threshold).any(dim=1)
