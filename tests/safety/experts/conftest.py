"""A tiny model, a tiny training set, and a short training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from safety.dataset.preferences import PreferenceSet
from safety.experts import ExpertConfig
from safety.families import ModelConfig, ModelFamily, load_model
from tests.support.small_world import RECIPE

MakeModel = Callable[[], ModelFamily]


@pytest.fixture
def make_model(tiny_model_dir: Path) -> MakeModel:
    torch.set_num_threads(1)
    return lambda: load_model(ModelConfig(path=str(tiny_model_dir)))


@pytest.fixture(scope="session")
def data(tiny_model_dir: Path) -> PreferenceSet:
    """Return eight pairs, of which the last two are for validation, and five benign rows."""
    model = load_model(ModelConfig(path=str(tiny_model_dir)))
    draw = torch.Generator().manual_seed(3)
    return PreferenceSet(
        category="hate",
        ids=tuple(f"pair-{i}" for i in range(8)),
        splits=("train",) * 6 + ("validation",) * 2,
        winner=torch.randn(8, 4, 4, 4, generator=draw),
        loser=torch.randn(8, 4, 4, 4, generator=draw),
        unsafe=model.encode_text([f"a kitchen knife {i}" for i in range(8)]),
        safe=model.encode_text([f"a house {i}" for i in range(8)]),
        benign_ids=tuple(f"benign-{i}" for i in range(5)),
        benign_splits=("train",) * 4 + ("validation",),
        benign=torch.randn(5, 4, 4, 4, generator=draw),
        benign_prompts=model.encode_text([f"a blue house {i}" for i in range(5)]),
        empty=model.encode_text([""]),
    )


@pytest.fixture
def make_config() -> Callable[..., ExpertConfig]:
    def make(**changes: Any) -> ExpertConfig:
        settings = {
            **RECIPE,
            "steps": 6,
            "rows": 4,
            "benign_rows": 2,
            "warmup": 2,
            "distinct_batches": 4,
            "validate_every": 3,
            "validation_rows": 4,
            "checkpoint_every": 2,
            "lora": {"rank": 2, "alpha": 4.0, "targets": None},
        }
        return ExpertConfig.model_validate(settings | changes)

    return make
