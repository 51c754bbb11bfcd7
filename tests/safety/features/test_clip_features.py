"""Features of a CLIP model from a folder, and FID and CLIPScore of them against pytorch-fid's and torchmetrics' own code."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch

from safety.errors import ConfigError
from safety.evaluation.fid import frechet
from safety.evaluation.measure import clip_scores
from safety.evaluation.moments import moments_of
from safety.features.extractor import load_features
from tests.support.tiny_clip import write_clip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip"))


def test_images_and_texts_are_in_one_space(folder: Path) -> None:
    found = load_features(f"clip@{folder}")
    images = torch.randint(0, 256, (19, 3, 40, 48), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    embedded, texts = found.images(images), found.texts(["a house", "a blue house " * 40])
    assert embedded.shape == (19, found.dimensions)
    assert texts.shape == (2, found.dimensions)
    assert torch.allclose(embedded.norm(dim=1), torch.ones(19), atol=1e-5)
    assert torch.allclose(found.images(images[3:4]), embedded[3:4], atol=1e-5)
    assert found.name.startswith("clip/projection-12@")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("clip", "do not say of which model"),
        ("clip@/nowhere/at/all", "no CLIP model at '/nowhere/at/all'"),
        ("emoji-clip@/models/clip", "take no weights"),
    ],
)
def test_what_cannot_be_loaded_is_named(name: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as refused:
        load_features(name)
    assert refused.value.field == "evaluate.features"


@pytest.mark.parametrize(("count", "others", "dimensions"), [(300, 260, 24), (60, 50, 128)])
def test_fid_is_that_of_pytorch_fid(count: int, others: int, dimensions: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of fewer images than dimensions too, whose covariances are singular, as in most runs."""
    pytest.importorskip("pytorch_fid", reason="pytorch-fid is not installed")
    # Its module imports torchvision for images; the distance itself needs none, and there is no CPU build of it.
    for name in ("torchvision", "torchvision.models", "torchvision.transforms"):
        monkeypatch.setitem(sys.modules, name, MagicMock())
    package = importlib.import_module("pytorch_fid.fid_score")
    draw = np.random.default_rng(0)
    first, second = draw.normal(size=(count, dimensions)), draw.normal(0.3, 1.4, size=(others, dimensions))
    expected = package.calculate_frechet_distance(
        first.mean(0), np.cov(first, rowvar=False), second.mean(0), np.cov(second, rowvar=False)
    )
    found = frechet(torch.from_numpy(first), moments_of(torch.from_numpy(second), "x", "y")).value
    assert found == pytest.approx(float(expected), abs=1e-3)


def test_clip_score_is_that_of_torchmetrics(folder: Path) -> None:
    package = pytest.importorskip("torchmetrics.multimodal.clip_score", reason="torchmetrics is not installed")
    from transformers import CLIPModel, CLIPProcessor

    class Older(CLIPModel):  # type: ignore[misc]
        """The model of older versions of transformers, which torchmetrics calls: its features are plain tensors."""

        def get_image_features(self, *given: Any, **named: Any) -> Any:
            return super().get_image_features(*given, **named).pooler_output

        def get_text_features(self, *given: Any, **named: Any) -> Any:
            return super().get_text_features(*given, **named).pooler_output

    images = torch.randint(0, 256, (6, 3, 40, 48), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)
    texts = ["a house", "a blue house", "a bomb", "a spoon", "a kite", "a red apple"]
    metric = package.CLIPScore(lambda: (Older.from_pretrained(folder), CLIPProcessor.from_pretrained(folder)))
    found = load_features(f"clip@{folder}")
    own = clip_scores(found.images(images), found.texts(texts))
    for image, text, score in zip(images, texts, own, strict=True):
        metric.reset()
        metric.update(image, text)
        assert float(metric.compute()) == pytest.approx(float(score), abs=1e-3)
