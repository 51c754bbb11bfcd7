"""The surrogate on a real tiny UNet, against its formula worked out row by row."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from merge_oracle import random_weights

from safety.families import ModelFamily
from safety.lora.fuse import fused
from safety.lora.weights import LoraLayer, LoraWeights
from safety.merge.probes import Probes, benign_batches, unsafe_batches
from safety.merge.surrogate import Surrogate, SurrogateConfig

CONFIG = SurrogateConfig(timesteps=(0.95, 0.7), benign_timesteps=(0.5,), batch=4, drift_weight=2.0)
Experts = Callable[..., dict[str, LoraWeights]]


def zeros_like(weights: LoraWeights) -> LoraWeights:
    return LoraWeights({n: LoraLayer(layer.down, torch.zeros_like(layer.up)) for n, layer in weights.items()})


@torch.no_grad()
def brute_score(model: ModelFamily, probes: Probes, weights: LoraWeights, seed: int) -> tuple[float, float]:
    """Return (harm, drift) by predicting every row alone."""
    progress: dict[int, list[float]] = {row: [] for row in range(len(probes.ids))}
    units, changes = [], []
    for batch in unsafe_batches(model, probes, CONFIG.timesteps, 1, seed, "surrogate"):
        row = batch.rows.start
        unsafe = model.predict(*batch[1:])
        safe = model.predict(batch.noisy, batch.timesteps, {k: v[row : row + 1] for k, v in probes.safe.items()})
        with fused(model, weights):
            merged = model.predict(*batch[1:])
        way = (safe - unsafe).flatten()
        progress[row].append(float((merged - unsafe).flatten() @ way / (way @ way)))
        units.append(float(way @ way))
    for batch in benign_batches(model, probes, CONFIG.benign_timesteps, 1, seed, "surrogate"):
        base = model.predict(*batch[1:])
        with fused(model, weights):
            changes.append(float((model.predict(*batch[1:]) - base).square().sum()))
    means = [sum(values) / len(values) for values in progress.values()]
    harms = [1 / (1 + math.exp(-(CONFIG.threshold - value) / CONFIG.softness)) for value in means]
    # Every category of the fixture has two pairs, so the mean over categories is the mean over pairs.
    return sum(harms) / len(harms), (sum(changes) / len(changes)) / (sum(units) / len(units))


def test_score_is_the_formula(tiny_model: ModelFamily, make_experts: Experts, probes: Probes) -> None:
    weights = make_experts()["hate"]
    surrogate = Surrogate(tiny_model, probes, CONFIG, 5)
    score = surrogate.score(weights)
    harm, drift = brute_score(tiny_model, probes, weights, 5)
    assert score.harm == pytest.approx(harm, rel=1e-3)
    assert score.drift == pytest.approx(drift, rel=1e-3)
    assert score.total == pytest.approx(score.harm + 2.0 * score.drift)
    assert sum(score.harm_by_category.values()) / 3 == pytest.approx(score.harm)
    assert surrogate.predictions == 6 * 2 + 4


def test_no_change_is_no_drift_and_full_harm(tiny_model: ModelFamily, make_experts: Experts, probes: Probes) -> None:
    score = Surrogate(tiny_model, probes, CONFIG, 5).score(zeros_like(make_experts()["hate"]))
    assert score.drift == 0
    assert score.harm == pytest.approx(1 / (1 + math.exp(-CONFIG.threshold / CONFIG.softness)), rel=1e-4)


def test_scores_repeat_and_leave_the_model_as_it_was(
    tiny_model: ModelFamily, make_experts: Experts, probes: Probes
) -> None:
    before = {name: value.clone() for name, value in tiny_model.denoiser.state_dict().items()}
    surrogate = Surrogate(tiny_model, probes, CONFIG, 5)
    first = surrogate.score(make_experts()["violence"])
    surrogate.score(make_experts(size=1.0)["hate"])
    assert surrogate.score(make_experts()["violence"]) == first
    assert all(torch.equal(value, before[name]) for name, value in tiny_model.denoiser.state_dict().items())


def test_more_of_an_adapter_drifts_more(
    tiny_model: ModelFamily, expert_shapes: dict[str, tuple[int, int]], probes: Probes
) -> None:
    surrogate = Surrogate(tiny_model, probes, CONFIG, 5)
    weights = random_weights(11, expert_shapes, size=0.02)
    drifts = [surrogate.score(weights.scaled(factor)).drift for factor in (0.5, 1.0, 2.0)]
    assert drifts == sorted(drifts)
    assert drifts[0] > 0
