"""Random experts and statistics for the merge tests."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from merge_oracle import random_weights

from safety.families import ModelConfig, ModelFamily, load_model
from safety.lora.weights import LoraWeights
from safety.merge.probes import Probes

NAMES = ("harass", "hate", "violence")


@pytest.fixture(scope="session")
def tiny_model(tiny_model_dir: object) -> ModelFamily:
    return load_model(ModelConfig(path=str(tiny_model_dir)))


@pytest.fixture(scope="session")
def expert_shapes(tiny_model: ModelFamily) -> dict[str, tuple[int, int]]:
    return {
        name: (module.out_features, module.in_features)  # type: ignore[misc]
        for name, module in tiny_model.denoiser.named_modules()
        if name.endswith(tiny_model.lora_targets)
    }


@pytest.fixture(scope="session")
def make_experts(expert_shapes: dict[str, tuple[int, int]]) -> Callable[..., dict[str, LoraWeights]]:
    def make(size: float = 0.1, rank: int = 3) -> dict[str, LoraWeights]:
        return {name: random_weights(index, expert_shapes, rank, size) for index, name in enumerate(NAMES)}

    return make


@pytest.fixture(scope="session")
def probes(tiny_model: ModelFamily) -> Probes:
    generator = torch.Generator().manual_seed(7)
    unsafe = [f"a kitchen knife number {index} on a blue background" for index in range(6)]
    safe = [f"a spoon number {index} on a blue background" for index in range(6)]
    benign = [f"a house number {index} on a blue background" for index in range(4)]
    return Probes(
        ids=tuple(f"pair-{index}" for index in range(6)),
        categories=("harass", "harass", "hate", "hate", "violence", "violence"),
        winners=torch.randn(6, 4, 4, 4, generator=generator),
        losers=torch.randn(6, 4, 4, 4, generator=generator),
        unsafe=tiny_model.encode_text(unsafe),
        safe=tiny_model.encode_text(safe),
        benign_ids=tuple(f"benign-{index}" for index in range(4)),
        benign_latents=torch.randn(4, 4, 4, 4, generator=generator),
        benign=tiny_model.encode_text(benign),
    )
