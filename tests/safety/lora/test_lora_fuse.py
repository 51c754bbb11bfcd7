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
from safety.lora.weights import LoraLayer, LoraWeights


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_fused_adds_the_update_and_restores_every_byte(
    model: ModelFamily, make_weights: Callable[..., LoraWeights], dtype: torch.dtype
) -> None:
    model.denoiser.to(dtype)
    weights = make_weights()
    before = {name: value.clone() for name, value in model.denoiser.state_dict().items()}
    with fused(model, weights, scale=0.7), torch.no_grad():
        for name, layer in weights.items():
            inputs = torch.randn(3, layer.down.shape[1], generator=torch.Generator().manual_seed(1)).to(dtype)
            whole = before[f"{name}.weight"].double() + 0.7 * layer.up.double() @ layer.down.double()
            bias = before.get(f"{name}.bias", torch.zeros(1)).double()
            found = model.denoiser.get_submodule(name)(inputs).double()
            # Both outputs are rounded to the type once; a sum in it may round once more.
            wanted = inputs.double() @ whole.T + bias
            largest = float(wanted.abs().max())
            assert float((found - wanted).abs().max()) <= 2 * torch.finfo(dtype).eps * largest + 1e-6
    assert all(torch.equal(value, before[name]) for name, value in model.denoiser.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_an_update_too_small_for_a_half_weight_still_acts(
    model: ModelFamily, make_weights: Callable[..., LoraWeights], dtype: torch.dtype
) -> None:
    model.denoiser.to(dtype)
    name, _ = next(iter(make_weights().items()))
    weight = model.denoiser.get_submodule(name).weight
    with torch.no_grad():
        weight.fill_(1.0)
        inputs = torch.ones(1, weight.shape[1], dtype=dtype)
        # An update of an eighth of the distance to the next number, everywhere: the weight would round it away.
        small = torch.finfo(dtype).eps / 8
        weights = LoraWeights(
            {name: LoraLayer(torch.ones(1, weight.shape[1]), torch.full((weight.shape[0], 1), small))}
        )
        before = model.denoiser.get_submodule(name)(inputs).double()
        with fused(model, weights, scale=16.0):
            found = model.denoiser.get_submodule(name)(inputs).double()
    bias = getattr(model.denoiser.get_submodule(name), "bias", None)
    assert bias is None or bias.shape == (weight.shape[0],)
    wanted = 16.0 * small * weight.shape[1]
    assert torch.allclose(found - before, torch.full_like(found, wanted), rtol=0.5)


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
