"""CLIPScore: how well an image fits its prompt."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

SCALE = 100.0


def clip_scores(images: Tensor, texts: Tensor) -> Tensor:
    """Return each pair's CLIPScore, fp32 [B] in [0, 100], of image and text features [B, D].

    Hessel et al. 2021 (arXiv:2104.08718) with the weight 100 that most reports use, in place of their 2.5:
    100 * max(cos, 0).
    """
    return SCALE * F.cosine_similarity(images.float(), texts.float(), dim=-1).clamp(min=0.0)
