"""The emoji CLIP's features against the stock CLIPModel's own similarity."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from safety.emoji.build.clip import ClipConfig, build_clip, train_tokenizer
from safety.emoji.features import EmojiClip
from safety.errors import ArtifactFormatError, ConfigError
from safety.evaluation.measure import clip_scores
from safety.features.extractor import feature_extractors

PROMPTS = ["a kitchen knife on a blue background", "a house and a car, pink background"]


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("clip")
    tokenizer = train_tokenizer(PROMPTS, vocab_size=600)
    tokenizer.save_pretrained(folder / "tokenizer")
    small = ClipConfig(width=32, text_layers=1, vision_layers=1, projection=16)
    build_clip(small, tokenizer).save_pretrained(folder / "clip")
    return folder


def pictures() -> torch.Tensor:
    return torch.randint(0, 256, (2, 3, 64, 64), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def test_scores_are_the_stock_models_cosines(clip_folder: Path) -> None:
    from transformers import CLIPModel, CLIPTokenizer

    stock = CLIPModel.from_pretrained(clip_folder / "clip").eval()
    tokenizer = CLIPTokenizer.from_pretrained(clip_folder / "tokenizer")
    tokens = tokenizer(PROMPTS, padding="max_length", max_length=32, return_tensors="pt").input_ids
    images = pictures()
    with torch.no_grad():
        out = stock(input_ids=tokens, pixel_values=images.float() / 127.5 - 1.0)
    cosines = (out.image_embeds * out.text_embeds).sum(dim=1)
    features = EmojiClip(clip_folder / "clip", clip_folder / "tokenizer")
    got = clip_scores(features.images(images), features.texts(PROMPTS))
    assert torch.allclose(got, 100.0 * cosines.clamp(min=0.0), atol=1e-3)
    assert features.images(images).shape == (2, features.dimensions) == (2, 16)


def test_the_name_changes_with_the_weights(clip_folder: Path, tmp_path: Path) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    shutil.copytree(clip_folder, tmp_path / "other")
    weights = tmp_path / "other" / "clip" / "model.safetensors"
    changed = load_file(weights)
    changed["logit_scale"] = changed["logit_scale"] + 1.0
    save_file(changed, weights, metadata={"format": "pt"})
    name = EmojiClip(clip_folder / "clip", clip_folder / "tokenizer").name
    assert name.startswith("emoji-clip/projection-16@")
    assert EmojiClip(tmp_path / "other" / "clip", clip_folder / "tokenizer").name != name


def test_other_sizes_are_resized(clip_folder: Path) -> None:
    features = EmojiClip(clip_folder / "clip", clip_folder / "tokenizer")
    flat = torch.full((1, 3, 16, 16), 90, dtype=torch.uint8)
    assert torch.allclose(
        features.images(flat), features.images(torch.full((1, 3, 64, 64), 90, dtype=torch.uint8)), atol=1e-5
    )


def test_missing_weights_and_unknown_names_say_so(tmp_path: Path) -> None:
    with pytest.raises(ArtifactFormatError, match=r"evaluate\.features"):
        EmojiClip(tmp_path, tmp_path)
    with pytest.raises(ConfigError, match="emoji-clip"):
        feature_extractors["no-such-network"]
