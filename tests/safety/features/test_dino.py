"""DINO features are the normalised class tokens of the model in the folder; other models are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from safety.errors import ConfigError
from safety.features.extractor import TextFeatureExtractor, load_features
from safety.images import to_pil
from tests.support.drawn_weights import wave_images
from tests.support.tiny_clip import write_clip

TINY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}


def models() -> dict[str, Any]:
    from transformers import Dinov2Config, Dinov2Model, ViTConfig, ViTModel

    return {
        "dinov2": Dinov2Model(Dinov2Config(**TINY)),
        # The first DINO: its checkpoints have no pooler.
        "vit": ViTModel(ViTConfig(**TINY, intermediate_size=32), add_pooling_layer=False),
    }


@pytest.mark.parametrize("kind", ["dinov2", "vit"])
def test_features_are_the_class_token(kind: str, tmp_path: Path) -> None:
    from transformers import ViTImageProcessor

    torch.manual_seed(0)
    model, processor = models()[kind].eval(), ViTImageProcessor(size={"height": 32, "width": 32})
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    images = wave_images(19, 40, 56)
    features = load_features(f"dino@{tmp_path}")
    found = features.images(images)
    with torch.no_grad():
        pixels = processor(images=[to_pil(image) for image in images], return_tensors="pt")["pixel_values"]
        expected = model(pixels).last_hidden_state[:, 0]
    assert found.shape == (19, 16)
    assert torch.allclose(found, expected, atol=1e-5)
    assert features.name.startswith(f"dino/{kind}-class-token-16@")
    assert not isinstance(features, TextFeatureExtractor)


def test_what_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip")
    for name, said in (
        ("dino", "do not say of which model"),
        (f"dino@{tmp_path}", "no vision transformer at"),
        (f"dino@{clip}", r"\(clip\) has no class token"),
    ):
        with pytest.raises(ConfigError, match=said) as refused:
            load_features(name)
        assert refused.value.field == "evaluate.features"
        assert "facebook/dinov2-base" in refused.value.fix
