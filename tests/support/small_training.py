"""A short training of an expert on three pairs of random latents, and what its adapters are held against."""

from __future__ import annotations

import torch

from jobs.train.config import TrainConfig
from safety.dataset.preferences import PreferenceSet
from safety.families import ModelFamily
from safety.lora.weights import LoraWeights
from tests.support.small_world import RECIPE

STEPS = 4


def train_config(stage: int, accumulation: int = 1) -> TrainConfig:
    """Return the settings of four steps of four pairs and two benign rows, in fp32."""
    return TrainConfig.model_validate(
        {
            "deepspeed": {"stage": stage},
            "expert": {
                **RECIPE,
                "steps": STEPS,
                "rows": 4,
                "benign_rows": 2,
                "warmup": 1,
                "accumulation": accumulation,
                "precision": "fp32",
                "checkpoint_every": 2,
                "validation_rows": 0,
                "clip_norm": 0.01,
                "lora": {"rank": 2, "targets": None},
            },
        }
    )


def small_pairs(model: ModelFamily) -> PreferenceSet:
    """Return three pairs and two benign rows of latents [4, 4, 4], all for training."""
    draw = torch.Generator().manual_seed(3)
    return PreferenceSet(
        category="hate",
        ids=("a", "b", "c"),
        splits=("train",) * 3,
        winner=torch.randn(3, 4, 4, 4, generator=draw),
        loser=torch.randn(3, 4, 4, 4, generator=draw),
        unsafe=model.encode_text([f"a kitchen knife {i}" for i in range(3)]),
        safe=model.encode_text([f"a house {i}" for i in range(3)]),
        benign_ids=("x", "y"),
        benign_splits=("train",) * 2,
        benign=torch.randn(2, 4, 4, 4, generator=draw),
        benign_prompts=model.encode_text(["a blue house", "a house"]),
        empty=model.encode_text([""]),
    )


def assert_close(found: LoraWeights, expected: LoraWeights) -> None:
    """Assert that two adapters are equal up to the rounding of a few steps."""
    for name, layer in expected.items():
        torch.testing.assert_close(found[name].down, layer.down, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(found[name].up, layer.up, rtol=1e-3, atol=1e-5)
