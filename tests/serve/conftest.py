"""A tiny model with a LoRA that changes what it draws, and an engine that serves both."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from safety.families import ModelConfig, load_model
from safety.lora.files import save_lora
from safety.lora.fuse import fuse
from safety.lora.weights import LoraLayer, LoraWeights
from serve.endpoint_config import EndpointConfig
from serve.engine import Engine, ServedModel
from serve.schema import ModelInfo


@pytest.fixture(scope="session")
def tiny_lora(tiny_model_dir: Path) -> LoraWeights:
    """Return a random rank-3 LoRA on every attention projection of the tiny model."""
    denoiser = load_model(ModelConfig(path=str(tiny_model_dir))).denoiser
    draw = torch.Generator().manual_seed(3)
    layers = {}
    for name, module in denoiser.named_modules():
        if isinstance(module, torch.nn.Linear) and name.endswith(("to_q", "to_k", "to_v", "to_out.0")):
            down = torch.randn(3, module.in_features, generator=draw)
            layers[name] = LoraLayer(down, 0.2 * torch.randn(module.out_features, 3, generator=draw))
    return LoraWeights(layers)


@pytest.fixture(scope="session")
def tiny_lora_dir(tiny_lora: LoraWeights, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny-lora")
    save_lora(tiny_lora, folder, metadata={})
    return folder


@pytest.fixture(scope="session")
def engine(tiny_model_dir: Path, tiny_lora: LoraWeights) -> Engine:
    config = ModelConfig(path=str(tiny_model_dir))
    base, aligned = load_model(config), load_model(config)
    fuse(aligned, tiny_lora)
    info = {"created": 1, "size": "16x16"}
    models = {
        "aligned": ServedModel(ModelInfo(id="aligned", release="release-1", aligned=True, **info), aligned),
        "base": ServedModel(ModelInfo(id="base", aligned=False, **info), base),
    }
    return Engine(models, EndpointConfig(serve_base=True, batch_size=4))
