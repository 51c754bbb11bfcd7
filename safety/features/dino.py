"""Features of vision transformers that were trained without labels (DINO, DINOv2, DINOv3), from a folder or a hub id.

``dino@facebook/dinov2-base``. Stein et al. 2023 (https://arxiv.org/abs/2306.04675) find FID on them nearer to what people see.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from safety.errors import ConfigError
from safety.features.extractor import FEATURE_DIGITS, feature_extractors
from safety.images import to_pil
from safety.quiet import no_progress_bars
from safety.weight_files import checksum, model_in, safetensors_of

NAME = "dino"
BATCH = 16
FIELD = "evaluate.features"
EXAMPLE = "write dino@FOLDER or dino@HUB_ID, such as dino@facebook/dinov2-base"


class DinoFeatures:
    """The class token after the last layer's normalisation (see ``FeatureExtractor``)."""

    def __init__(self, model: Any, processor: Any, digest: str, device: str) -> None:
        self._model = model.to(device).eval().requires_grad_(False)
        self._processor, self._device = processor, torch.device(device)
        self.dimensions = int(model.config.hidden_size)
        self.name = f"{NAME}/{model.config.model_type}-class-token-{self.dimensions}@{digest[:FEATURE_DIGITS]}"

    @torch.no_grad()
    def images(self, images: Tensor) -> Tensor:
        """Return fp32 [B, D] of images uint8 [B, 3, H, W], as the model's own processor prepares them."""
        return torch.cat([self._part(part) for part in torch.split(images, BATCH)])

    def _part(self, images: Tensor) -> Tensor:
        pixels = self._processor(images=[to_pil(image) for image in images], return_tensors="pt")["pixel_values"]
        found: Tensor = self._model(pixel_values=pixels.to(self._device)).last_hidden_state
        return found[:, 0].float().cpu()


@feature_extractors.register(NAME)
def load_dino(*, device: str = "cpu", weights: str | None = None) -> DinoFeatures:
    """Load a model; raise ConfigError when none is named, there is none, or it has no class token."""
    if weights is None:
        raise ConfigError(f"the features {NAME!r} do not say of which model", field=FIELD, fix=EXAMPLE)
    # Slow to import, and not for processes that load no model.
    from transformers import AutoImageProcessor, AutoModel

    folder = model_in(weights, "vision transformer", FIELD, EXAMPLE)
    try:
        with no_progress_bars():
            model: Any = AutoModel.from_pretrained(folder, dtype=torch.float32, use_safetensors=True)
            processor: Any = AutoImageProcessor.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"no vision transformer at {weights!r}: {' '.join(str(error).split())[:200]}", field=FIELD, fix=EXAMPLE
        ) from None
    tokens = [name for name, _ in model.named_parameters() if name.endswith("cls_token")]
    if not tokens or not hasattr(model.config, "hidden_size"):
        raise ConfigError(
            f"the model at {weights!r} ({model.config.model_type}) has no class token", field=FIELD, fix=EXAMPLE
        )
    return DinoFeatures(model, processor, checksum(safetensors_of(folder, FIELD), None), device)
