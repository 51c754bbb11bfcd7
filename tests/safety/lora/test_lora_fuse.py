"""Fusing: the sum in closed form, and the base weights' exact bytes afterwards."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from safety.errors import ArtifactFormatError
from safety.families import ModelFamily
from safety.lora.attach import attach
from safety.lora.config import LoraConfig
from safety.lora.fuse import fuse, fused
from safety.lora.weights import LoraWeights


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fused_adds_the_update_and_restores_every_byte(
    model: ModelFamily, make_weights: Callable[..., LoraWeights], dtype: torch.dtype
) -> None:
    model.denoiser.to(dtype)
    weights = make_weights()
    before = {name: value.clone() for name, value in model.denoiser.state_dict().items()}
    with fused(model, weights, scale=0.7):
        for name, layer in weights.items():
            wanted = (before[f"{name}.weight"].double() + 0.7 * layer.up.double() @ layer.down.double()).to(dtype)
            assert torch.allclose(model.denoiser.get_submodule(name).weight, wanted, rtol=1e-2, atol=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in model.denoiser.state_dict().items())


def test_the_weights_come_back_after_an_error(model: ModelFamily, make_weights: Callable[..., LoraWeights]) -> None:
    before = {name: value.clone() for name, value in model.denoiser.state_dict().items()}
    with pytest.raises(RuntimeError, match="inside"), fused(model, make_weights()):
        raise RuntimeError("inside")
    assert all(torch.equal(value, before[name]) for name, value in model.denoiser.state_dict().items())


def test_fuse_stays_and_works_below_an_attached_adapter(
    model: ModelFamily, make_weights: Callable[..., LoraWeights]
) -> None:
    weights = make_weights()
    name = next(iter(weights))
    before = model.denoiser.get_submodule(name).weight.clone()
    attach(model, LoraConfig(rank=2, targets=None), seed=0)
    fuse(model, weights)
    after = model.denoiser.get_submodule(name).base_layer.weight
    assert torch.allclose(after, before + weights[name].delta(), atol=1e-6)


def test_an_adapter_that_does_not_fit_changes_nothing(
    model: ModelFamily, make_weights: Callable[..., LoraWeights]
) -> None:
    weights = make_weights()
    before = {name: value.clone() for name, value in model.denoiser.state_dict().items()}
    misfit = LoraWeights({**weights, "zzz": next(iter(weights.values()))})
    with pytest.raises(ArtifactFormatError, match="zzz"), fused(model, misfit):
        pass
    with pytest.raises(ArtifactFormatError, match="zzz"):
        fuse(model, misfit)
    assert all(torch.equal(value, before[name]) for name, value in model.denoiser.state_dict().items())
