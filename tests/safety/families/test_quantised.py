"""A quantised denoiser: its predictions near the whole one's, adapters trained and applied beside it, and its absence."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from safety.errors import ConfigError
from safety.families import ModelConfig, load_model
from safety.families.family import Quantize
from safety.families.quantised import quantisable
from safety.lora.attach import attach, extract, trainable
from safety.lora.config import LoraConfig
from safety.lora.fuse import fused
from safety.lora.weights import LoraLayer, LoraWeights


def inputs() -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    draw = torch.Generator().manual_seed(0)
    states = torch.randn(2, 32, 32, generator=draw)
    return torch.randn(2, 4, 4, 4, generator=draw), torch.tensor([10, 700]), {"states": states}


def test_without_the_library_the_error_says_what_to_install(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ConfigError, match="bitsandbytes") as refused:
        load_model(ModelConfig(path=str(tiny_model_dir), quantize="nf4"))
    assert refused.value.field == "model.quantize"
    assert "[quantized]" in refused.value.fix


@pytest.mark.parametrize(("quantize", "step"), [("int8", 1 / 127), ("nf4", 1 / 6)])
def test_an_adapter_is_trained_and_applied_beside_quantised_weights(
    tiny_model_dir: Path, quantize: Quantize, step: float
) -> None:
    pytest.importorskip("bitsandbytes")
    plain = load_model(ModelConfig(path=str(tiny_model_dir)))
    model = load_model(ModelConfig(path=str(tiny_model_dir), quantize=quantize))
    layers = quantisable(model.denoiser)
    assert layers
    assert {layer.weight.dtype for layer in layers.values()} == {torch.int8 if quantize == "int8" else torch.uint8}
    noisy, timesteps, conditioning = inputs()
    with torch.no_grad():
        whole, found = (each.predict(noisy, timesteps, conditioning) for each in (plain, model))
        # A layer's weights are off by half a step of its largest number at most; the layers' errors add up in part.
        assert 0 < float((found - whole).norm() / whole.norm()) < 4 * step
        targets = model.text_targets
        names = [name for name in layers if name.endswith(targets)]
        draw = torch.Generator().manual_seed(1)
        weights = LoraWeights(
            {
                name: LoraLayer(
                    torch.randn(2, layers[name].in_features, generator=draw),
                    torch.randn(layers[name].out_features, 2, generator=draw),
                )
                for name in names
            }
        )
        with fused(model, weights):
            changed = model.predict(noisy, timesteps, conditioning)
        assert torch.equal(model.predict(noisy, timesteps, conditioning), found)
        with fused(plain, weights):
            expected = plain.predict(noisy, timesteps, conditioning) - whole
        assert float((changed - found - expected).norm() / expected.norm()) < 4 * step
    attach(model, LoraConfig(rank=2, targets=targets), seed=0)
    model.predict(noisy, timesteps, conditioning).square().mean().backward()
    gradients = [parameter.grad for name, parameter in trainable(model).items() if name.endswith("up")]
    assert all(gradient is not None and bool(gradient.abs().sum() > 0) for gradient in gradients)
    assert set(extract(model)) == set(names)
