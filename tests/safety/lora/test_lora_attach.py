"""Attaching a LoRA: what it changes, what it leaves alone, and what is read out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from safety.errors import ArtifactFormatError, ConfigError
from safety.families import ModelFamily
from safety.lora.attach import attach, extract, reference, set_weights, trainable
from safety.lora.config import LoraConfig
from safety.lora.fuse import fused
from safety.lora.weights import LoraWeights
from tests.safety.lora.conftest import MakeWeights


def predict(model: ModelFamily) -> Tensor:
    draw = torch.Generator().manual_seed(3)
    noisy, states = torch.randn(2, 4, 4, 4, generator=draw), torch.randn(2, 32, 32, generator=draw)
    with torch.no_grad():
        return model.predict(noisy, torch.tensor([900, 100]), {"states": states})


def stir(model: ModelFamily) -> None:
    draw = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in trainable(model).values():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=draw))


def test_a_fresh_adapter_changes_nothing_and_only_it_is_trainable(model: ModelFamily) -> None:
    before = predict(model)
    attach(model, LoraConfig(rank=2, targets=None), seed=1)
    assert torch.equal(predict(model), before)
    mine = {id(p) for p in trainable(model).values()}
    assert {id(p) for p in model.denoiser.parameters() if p.requires_grad} == mine
    # 2 transformer blocks of the tiny UNet's down path... every attention has q, k, v and out, each with A and B.
    attentions = sum(name.endswith(("attn1", "attn2")) for name, _ in model.denoiser.named_modules())
    assert len(mine) == attentions * 4 * 2
    assert attentions > 0


def detach(model: ModelFamily) -> None:
    model.denoiser.unload_lora()


def test_the_start_depends_on_the_seed_only(model: ModelFamily) -> None:
    starts = []
    for seed in (1, 1, 2):
        attach(model, LoraConfig(rank=2, targets=None), seed=seed)
        starts.append(extract(model))
        detach(model)
    name = next(iter(starts[0]))
    assert torch.equal(starts[0][name].down, starts[1][name].down)
    assert not torch.equal(starts[0][name].down, starts[2][name].down)
    assert all(not layer.up.any() for layer in starts[0].values())


def test_reference_is_the_base_model_and_the_policy_comes_back(model: ModelFamily) -> None:
    base = predict(model)
    attach(model, LoraConfig(rank=2, targets=None), seed=1)
    stir(model)
    policy = predict(model)
    assert not torch.allclose(policy, base, atol=1e-3)
    with reference(model):
        assert torch.equal(predict(model), base)
    assert torch.equal(predict(model), policy)
    with pytest.raises(RuntimeError), reference(model):
        raise RuntimeError
    assert torch.equal(predict(model), policy)


def test_attaching_leaves_the_base_models_weights_alone(model: ModelFamily) -> None:
    base, names = predict(model), [name for name, _ in model.denoiser.named_modules()]
    state = {name: value.clone() for name, value in model.denoiser.state_dict().items()}
    attach(model, LoraConfig(rank=2, targets=None), seed=1)
    stir(model)
    detach(model)
    assert [name for name, _ in model.denoiser.named_modules()] == names
    assert all(torch.equal(value, state[name]) for name, value in model.denoiser.state_dict().items())
    assert torch.equal(predict(model), base)
    attach(model, LoraConfig(rank=3, targets=None), seed=1)


def test_extracted_weights_predict_as_the_attached_ones(model: ModelFamily) -> None:
    attach(model, LoraConfig(rank=2, alpha=6.0, targets=None), seed=1)
    stir(model)
    expected, weights = predict(model), extract(model)
    by_hand = trainable(model)
    name = next(iter(weights))
    assert torch.allclose(weights[name].delta(), 3.0 * by_hand[f"{name}.up"] @ by_hand[f"{name}.down"], atol=1e-6)
    detach(model)
    with fused(model, weights):
        assert torch.allclose(predict(model), expected, atol=1e-4)


@pytest.mark.parametrize(("target", "message"), [("to_x", "no layer ends"), ("conv_in", "not a linear layer")])
def test_wrong_targets_are_refused(model: ModelFamily, target: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        attach(model, LoraConfig(targets=(target,)), seed=1)
    assert not any(isinstance(m, nn.Module) and "lora" in n for n, m in model.denoiser.named_modules())


def test_weights_of_mixed_ranks_that_are_set_predict_as_fused_ones(
    model: ModelFamily, make_weights: MakeWeights
) -> None:
    weights = make_weights(ranks=(3, 1, 2))
    with fused(model, weights):
        expected = predict(model)
    attach(model, LoraConfig(rank=weights.rank, alpha=6.0, targets=None), seed=1)
    set_weights(model, weights)
    assert torch.allclose(predict(model), expected, atol=1e-4)
    again = extract(model)
    assert all(torch.allclose(again[name].delta(), layer.delta(), atol=1e-6) for name, layer in weights.items())


def test_components_beyond_a_layers_rank_get_no_gradient(model: ModelFamily, make_weights: MakeWeights) -> None:
    attach(model, LoraConfig(rank=4, targets=None), seed=1)
    set_weights(model, make_weights(ranks=(2,)))
    draw = torch.Generator().manual_seed(3)
    noisy, states = torch.randn(2, 4, 4, 4, generator=draw), torch.randn(2, 32, 32, generator=draw)
    model.predict(noisy, torch.tensor([900, 100]), {"states": states}).square().sum().backward()
    for name, parameter in trainable(model).items():
        gradient = parameter.grad
        assert gradient is not None
        within, beyond = (gradient[:2], gradient[2:]) if name.endswith(".down") else (gradient[:, :2], gradient[:, 2:])
        assert within.any(), name
        assert not beyond.any(), name


def test_weights_that_do_not_fit_what_is_attached_are_told(model: ModelFamily, make_weights: MakeWeights) -> None:
    weights = make_weights()
    attach(model, LoraConfig(rank=2, targets=None), seed=1)
    with pytest.raises(ArtifactFormatError, match="has rank 3 and 2 is trained"):
        set_weights(model, weights)
    name = next(iter(weights))
    fewer = LoraWeights({other: layer for other, layer in weights.items() if other != name})
    with pytest.raises(ArtifactFormatError, match=name):
        set_weights(model, fewer)
