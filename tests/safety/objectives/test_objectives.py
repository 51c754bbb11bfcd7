"""Objectives against brute-force loops in fp64, closed-form gradients and their limits."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from safety.errors import ConfigError
from safety.objectives import PreferenceErrors, objectives
from safety.objectives.anchored_dpo import AnchoredDpo, AnchoredDpoConfig
from safety.objectives.diffusion_dpo import DiffusionDpo, DiffusionDpoConfig


def draw(rows: int = 6, benign: int = 4, seed: int = 0) -> PreferenceErrors:
    generator = torch.Generator().manual_seed(seed)
    parts = [torch.rand(rows, generator=generator) * 0.3 for _ in range(4)]
    policy = [part.requires_grad_() for part in parts[:2]]
    drift = (torch.rand(benign, generator=generator) * 0.1).requires_grad_()
    return PreferenceErrors(policy[0], policy[1], parts[2], parts[3], drift)


def brute_dpo(errors: PreferenceErrors, beta: float) -> float:
    total = 0.0
    for win, lose, rw, rl in zip(*(part.tolist() for part in errors[:4]), strict=True):
        inner = -(beta / 2.0) * ((win - lose) - (rw - rl))
        total += math.log1p(math.exp(-inner)) if inner > 0 else -inner + math.log1p(math.exp(inner))
    return total / len(errors.winner)


@given(seed=st.integers(0, 50), beta=st.sampled_from([0.5, 40.0, 300.0, 5000.0]))
def test_diffusion_dpo_is_the_formula(seed: int, beta: float) -> None:
    errors = draw(seed=seed)
    value = DiffusionDpo(DiffusionDpoConfig(beta=beta))(errors)
    assert float(value.loss.detach()) == pytest.approx(brute_dpo(errors, beta), rel=1e-4)


@given(seed=st.integers(0, 50), anchor=st.floats(0, 5), benign=st.floats(0, 20))
def test_anchored_dpo_is_the_formula(seed: int, anchor: float, benign: float) -> None:
    errors = draw(seed=seed)
    config = AnchoredDpoConfig(beta=80.0, anchor_weight=anchor, benign_weight=benign)
    winner = sum(errors.winner.tolist()) / 6
    drift = sum(errors.drift.tolist()) / 4
    expected = brute_dpo(errors, 80.0) + anchor * winner + benign * drift
    assert float(AnchoredDpo(config)(errors).loss.detach()) == pytest.approx(expected, rel=1e-4)


def test_without_anchors_it_is_plain() -> None:
    errors = draw()
    plain = DiffusionDpo(DiffusionDpoConfig(beta=70.0))(errors).loss
    bare = AnchoredDpo(AnchoredDpoConfig(beta=70.0, anchor_weight=0.0, benign_weight=0.0))
    assert torch.equal(bare(errors).loss, plain)
    assert not bare.needs_benign
    assert AnchoredDpo(AnchoredDpoConfig()).needs_benign


@pytest.mark.parametrize("name", ["diffusion-dpo", "anchored-dpo"])
def test_the_dpo_part_is_ln_2_where_policy_is_reference(name: str) -> None:
    start = draw()
    errors = start._replace(reference_winner=start.winner.detach(), reference_loser=start.loser.detach())
    config = {"diffusion-dpo": DiffusionDpoConfig(), "anchored-dpo": AnchoredDpoConfig()}[name]
    metrics = objectives[name](config)(errors).metrics
    assert float(metrics["dpo_loss"]) == pytest.approx(math.log(2.0), abs=1e-7)
    assert float(metrics["implicit_accuracy"]) == 0.5
    assert float(metrics["margin"]) == 0.0


def test_the_gradient_is_the_closed_form_and_the_reference_has_none() -> None:
    errors, beta, anchor, benign = draw(), 60.0, 2.0, 7.0
    AnchoredDpo(AnchoredDpoConfig(beta=beta, anchor_weight=anchor, benign_weight=benign))(errors).loss.backward()
    inner = -(beta / 2) * ((errors.winner - errors.loser) - (errors.reference_winner - errors.reference_loser))
    slope = (beta / 2) * torch.sigmoid(-inner.detach()) / 6
    assert errors.winner.grad is not None
    assert torch.allclose(errors.winner.grad, slope + anchor / 6, rtol=1e-5)
    assert errors.loser.grad is not None
    assert torch.allclose(errors.loser.grad, -slope, rtol=1e-5)
    assert errors.drift.grad is not None
    assert torch.allclose(errors.drift.grad, torch.full((4,), benign / 4))
    assert errors.reference_winner.grad is None


def test_gradcheck_in_double_precision() -> None:
    policy = [torch.rand(3, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    fixed = [torch.rand(3, dtype=torch.float64) for _ in range(2)]
    objective = AnchoredDpo(AnchoredDpoConfig(beta=5.0))

    def loss(win: torch.Tensor, lose: torch.Tensor, drift: torch.Tensor) -> torch.Tensor:
        return objective(PreferenceErrors(win, lose, fixed[0], fixed[1], drift)).loss

    assert torch.autograd.gradcheck(loss, policy)


@given(seed=st.integers(0, 50))
def test_implicit_accuracy_counts_rows_whose_gap_grew(seed: int) -> None:
    errors = draw(seed=seed)
    grew = [(lose - win) > (rl - rw) for win, lose, rw, rl in zip(*(part.tolist() for part in errors[:4]), strict=True)]
    accuracy = DiffusionDpo(DiffusionDpoConfig())(errors).metrics["implicit_accuracy"]
    assert float(accuracy) == pytest.approx(sum(grew) / len(grew))


def test_no_benign_rows_count_as_no_drift() -> None:
    errors = draw(benign=0)
    value = AnchoredDpo(AnchoredDpoConfig())(errors)
    assert torch.isfinite(value.loss)
    assert float(value.metrics["drift"]) == 0.0


def test_huge_margins_stay_finite() -> None:
    zero, one = torch.zeros(2), torch.ones(2)
    for winner, loser in ((zero, one), (one, zero)):
        errors = PreferenceErrors(winner.requires_grad_(), loser, zero.detach(), zero.detach(), torch.zeros(0))
        value = DiffusionDpo(DiffusionDpoConfig(beta=1e6))(errors)
        value.loss.backward()
        assert torch.isfinite(value.loss)
        assert winner.grad is not None
        assert torch.isfinite(winner.grad).all()


def test_an_unknown_objective_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="anchored-dpo, diffusion-dpo"):
        objectives["dpo"]
