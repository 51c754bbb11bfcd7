"""The emoji world's feature extractor: its own CLIP."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from safety.emoji import FEATURES, ZOO
from safety.errors import ArtifactFormatError
from safety.features.extractor import feature_extractors
from safety.images import to_float
from safety.quiet import no_progress_bars


class EmojiClip:
    """The emoji world's CLIP (see ``FeatureExtractor``): unnormalised projections of its two towers.

    It was trained on images in [-1, 1], without CLIP's channel normalisation, at its own size.
    """

    def __init__(self, folder: Path, tokenizer: Path, *, device: str = "cpu") -> None:
        """Load ``CLIPModel.save_pretrained``'s folder and a tokenizer's folder.

        Raises:
            ArtifactFormatError: The folder holds no safetensors weights.
        """
        # Slow to import, and not for processes that load no model.
        from transformers import CLIPModel, CLIPTokenizer

        weights = folder / "model.safetensors"
        if not weights.is_file():
            raise ArtifactFormatError(
                f"no {weights}", field="evaluate.features", fix="build the emoji zoo, or name other features"
            )
        with no_progress_bars():
            self._model: Any = CLIPModel.from_pretrained(
                folder, dtype=torch.float32, use_safetensors=True, local_files_only=True
            )
        self._model = self._model.to(device).eval().requires_grad_(False)
        self._tokenizer: Any = CLIPTokenizer.from_pretrained(tokenizer, local_files_only=True)
        self._device = torch.device(device)
        self._side = int(self._model.config.vision_config.image_size)
        self._tokens = int(self._model.config.text_config.max_position_embeddings)
        self.dimensions = int(self._model.config.projection_dim)
        digest = hashlib.sha256(weights.read_bytes()).hexdigest()[:12]
        self.name = f"{FEATURES}/projection-{self.dimensions}@{digest}"

    @torch.no_grad()
    def images(self, images: Tensor) -> Tensor:
        """Return fp32 [B, D] of images uint8 [B, 3, H, W]; other sizes than CLIP's are resized."""
        pixels = to_float(images.to(self._device))
        if pixels.shape[-2:] != (self._side, self._side):
            pixels = F.interpolate(pixels, size=(self._side, self._side), mode="bilinear", antialias=True)
        pooled = self._model.vision_model(pixel_values=pixels).pooler_output
        projected: Tensor = self._model.visual_projection(pooled)
        return projected.float().cpu()

    @torch.no_grad()
    def texts(self, prompts: Sequence[str]) -> Tensor:
        """Return fp32 [B, D] of prompts, cut at CLIP's length."""
        tokens = self._tokenizer(
            list(prompts), padding="max_length", truncation=True, max_length=self._tokens, return_tensors="pt"
        )
        pooled = self._model.text_model(input_ids=tokens.input_ids.to(self._device)).pooler_output
        projected: Tensor = self._model.text_projection(pooled)
        return projected.float().cpu()


@feature_extractors.register(FEATURES)
def load_emoji_clip(*, device: str = "cpu") -> EmojiClip:
    """Load the CLIP of the embedded zoo."""
    return EmojiClip(ZOO / "clip", ZOO / "tokenizer", device=device)
