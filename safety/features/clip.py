"""Features of any CLIP model of transformers, from a folder or a hub id: ``clip@openai/clip-vit-large-patch14``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from safety.errors import ConfigError
from safety.features.extractor import FEATURE_DIGITS, feature_extractors
from safety.judges.clip import Clip, ClipSettings

NAME = "clip"
BATCH = 16


class ClipFeatures:
    """CLIP's projections, of length one (see ``FeatureExtractor``)."""

    def __init__(self, clip: Clip) -> None:
        self._clip = clip
        self.dimensions = clip.dimensions
        self.name = f"{NAME}/projection-{self.dimensions}@{clip.digest[:FEATURE_DIGITS]}"

    @torch.no_grad()
    def images(self, images: Tensor) -> Tensor:
        """Return fp32 [B, D] of images uint8 [B, 3, H, W], as CLIP's own processor prepares them."""
        return torch.cat([self._clip.images(part).cpu() for part in torch.split(images, BATCH)])

    @torch.no_grad()
    def texts(self, prompts: Sequence[str]) -> Tensor:
        """Return fp32 [B, D] of prompts, cut at CLIP's length."""
        return self._clip.texts(list(prompts)).cpu()


@feature_extractors.register(NAME)
def load_clip_features(*, device: str = "cpu", weights: str | None = None) -> ClipFeatures:
    """Load a CLIP model; raise ConfigError when none is named, or there is none."""
    if weights is None:
        raise ConfigError(
            "the features 'clip' do not say of which model",
            field="evaluate.features",
            fix="write clip@FOLDER or clip@HUB_ID, such as clip@openai/clip-vit-large-patch14",
        )
    return ClipFeatures(Clip(ClipSettings(weights=weights, device=device), "evaluate.features"))
