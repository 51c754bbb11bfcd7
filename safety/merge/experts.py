"""Operations on the experts that every merge method shares: a check that they fit each other, and their exact sum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from safety.errors import ArtifactFormatError, ConfigError
from safety.lora.weights import LoraLayer, LoraWeights


def check_experts(experts: Mapping[str, LoraWeights]) -> None:
    """Raise ConfigError when there is no expert, ArtifactFormatError when two do not adapt the same layers."""
    if not experts:
        raise ConfigError("there is no expert to merge", field="experts", fix="train at least one expert first")
    (first, reference), *others = experts.items()
    for name, expert in others:
        odd = sorted(set(reference) ^ set(expert))
        if odd:
            raise ArtifactFormatError(
                f"{first!r} and {name!r} adapt different layers, such as {odd[0]}",
                field=f"experts.{name}",
                fix="train all experts with the same LoRA targets on the same base model",
            )
        for layer, value in expert.items():
            if _outer_shape(value) != _outer_shape(reference[layer]):
                raise ArtifactFormatError(
                    f"{layer} is {_outer_shape(reference[layer])} in {first!r} and {_outer_shape(value)} in {name!r}",
                    field=f"experts.{name}",
                    fix="train all experts on the same base model",
                )


def _outer_shape(layer: LoraLayer) -> tuple[int, int]:
    return int(layer.up.shape[0]), int(layer.down.shape[1])


def stack(layers: Sequence[LoraLayer], coefficients: Sequence[Tensor | float]) -> LoraLayer:
    """Return one layer with dW = sum of diag(c_i) dW_i, exact, of rank sum(r_i).

    Args:
        layers: The experts' layers.
        coefficients: For each expert a number, or a tensor [outputs] with one number per output row.
    """
    blocks = [
        layer.up * (c[:, None].to(layer.up.dtype) if isinstance(c, Tensor) else c)
        for layer, c in zip(layers, coefficients, strict=True)
    ]
    return LoraLayer(torch.cat([layer.down for layer in layers]), torch.cat(blocks, dim=1))


def scaled_sum(experts: Mapping[str, LoraWeights], factor: float) -> LoraWeights:
    """Return factor * sum of dW_i over all layers, exact; raises as ``check_experts`` does."""
    check_experts(experts)
    return LoraWeights(
        {
            name: stack([expert[name] for expert in experts.values()], [factor] * len(experts))
            for name in next(iter(experts.values()))
        }
    )
