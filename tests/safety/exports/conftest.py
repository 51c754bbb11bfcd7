"""One base model of each original layout in turn, and an adapter for it."""

from __future__ import annotations

from pathlib import Path

import pytest
from diffusers import UNet2DConditionModel

from safety.lora.weights import LoraWeights
from tests.support.tiny_pipelines import make_pipeline, random_adapter


@pytest.fixture(scope="session", params=["1", "2", "xl"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a base model's folder, one of each layout in turn."""
    folder = tmp_path_factory.mktemp(f"base-{request.param}")
    make_pipeline(request.param).save_pretrained(folder)
    return folder


@pytest.fixture
def adapter(base: Path) -> LoraWeights:
    return random_adapter(UNet2DConditionModel.from_pretrained(base / "unet"))
