"""A loaded tiny model, and random adapters for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from safety.families import ModelConfig, ModelFamily, load_model
from safety.lora.weights import LoraLayer, LoraWeights

MakeWeights = Callable[..., LoraWeights]


@pytest.fixture
def model(tiny_model_dir: Path) -> ModelFamily:
    return load_model(ModelConfig(path=str(tiny_model_dir)))


@pytest.fixture
def make_weights(model: ModelFamily) -> MakeWeights:
    def make(ranks: tuple[int, ...] = (3,), size: float = 0.3) -> LoraWeights:
        draw = torch.Generator().manual_seed(1)
        layers = {}
        linear = [(n, m) for n, m in model.denoiser.named_modules() if n.endswith(model.lora_targets)]
        for place, (name, module) in enumerate(linear):
            rank = ranks[place % len(ranks)]
            outputs, inputs = module.weight.shape
            layers[name] = LoraLayer(
                size * torch.randn(rank, inputs, generator=draw), size * torch.randn(outputs, rank, generator=draw)
            )
        return LoraWeights(layers)

    return make
