"""A LoRA behind a gate predicts what the plain LoRA with the gate folded in predicts."""

from __future__ import annotations

from pathlib import Path

import torch

from safety.families import ModelConfig, ModelFamily, load_model
from safety.lora.attach import attach, extract, trainable
from safety.lora.config import LoraConfig
from safety.lora.fuse import fused
from safety.lora.gate import fold_gate, gate_inputs
from safety.lora.weights import LoraWeights


def gated(model: ModelFamily, gate: torch.Tensor) -> LoraWeights:
    """Attach a gated LoRA of random weights and return it folded."""
    attach(model, LoraConfig(rank=2, alpha=2, targets=None), 0)
    gate_inputs(model, gate)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in trainable(model).values():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return fold_gate(extract(model), gate, model.text_targets)


@torch.no_grad()
def predict(model: ModelFamily, states: torch.Tensor) -> torch.Tensor:
    noisy = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    return model.predict(noisy, torch.tensor([900, 300]), {"states": states})


def test_training_behind_a_gate_sees_what_the_folded_adapter_does(tiny_model_dir: Path) -> None:
    trained, plain = (load_model(ModelConfig(path=str(tiny_model_dir))) for _ in range(2))
    states = plain.encode_text(["a knife", "a house"])["states"]
    width = states.shape[-1]
    gate = torch.randn(width, width, generator=torch.Generator().manual_seed(2)) / width**0.5
    weights = gated(trained, gate)
    ungated = extract(trained)
    base = predict(plain, states)
    with fused(plain, weights):
        folded = predict(plain, states)
    with fused(plain, ungated):
        wrong = predict(plain, states)
    torch.testing.assert_close(predict(trained, states), folded, rtol=1e-4, atol=1e-5)
    assert float((folded - base).abs().max()) > 1e-2
    assert float((wrong - folded).abs().max()) > 1e-2
    for name, layer in weights.items():
        assert torch.equal(layer.delta(), ungated[name].delta()) != name.endswith(plain.text_targets), name


def test_a_closed_gate_leaves_the_prompts_it_is_closed_for_alone(tiny_model_dir: Path) -> None:
    model = load_model(ModelConfig(path=str(tiny_model_dir)))
    states = model.encode_text(["a knife", "a house"])["states"]
    before = predict(model, states)
    basis = torch.linalg.svd(states.flatten(0, 1), full_matrices=True).Vh
    rank = int(torch.linalg.matrix_rank(states.flatten(0, 1)))
    # Everything that these states span is closed; only cross-attention keys and values are adapted.
    gate = torch.eye(basis.shape[0]) - basis[:rank].T @ basis[:rank]
    attach(model, LoraConfig(rank=2, alpha=2, targets=model.text_targets), 0)
    gate_inputs(model, gate)
    with torch.no_grad():
        for parameter in trainable(model).values():
            parameter.fill_(0.3)
    torch.testing.assert_close(predict(model, states), before, rtol=1e-3, atol=1e-4)
