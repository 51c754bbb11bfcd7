"""A gate on a LoRA's inputs: dW = (alpha / rank) B A P, with P fixed while A and B are trained.

All of a gated expert's effect passes through its gate. So nothing is lost when experts are added up whose gates divide
the input space among them (``safety.gates``).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from safety.families import ModelFamily
from safety.lora.attach import EXPERT
from safety.lora.weights import LoraWeights


def gate_inputs(model: ModelFamily, gate: Tensor, name: str = EXPERT) -> None:
    """Multiply the inputs of the attached LoRA by P in every layer that reads the prompt; call ``lora.attach`` first.

    Args:
        model: The model with the LoRA attached.
        gate: P, [inputs, inputs].
        name: The LoRA's name.
    """
    # Slow to import, and not for processes that load no model.
    from peft.tuners.lora import LoraLayer

    turned = gate.T.to(model.device)

    def through(_module: Any, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        (inputs,) = arguments
        return (inputs @ turned.to(inputs.dtype),)

    for layer, module in model.denoiser.named_modules():
        if isinstance(module, LoraLayer) and layer.endswith(model.text_targets):
            module.lora_A[name].register_forward_pre_hook(through)


def fold_gate(weights: LoraWeights, gate: Tensor, suffixes: tuple[str, ...]) -> LoraWeights:
    """Return the LoRA with P folded into the A of the layers whose names end with a suffix: a plain LoRA again."""
    return LoraWeights(
        {name: layer.gated(gate) if name.endswith(suffixes) else layer for name, layer in weights.items()}
    )
