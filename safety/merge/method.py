"""The protocol of a merge method, the registry, and what every method shares: experts in, one LoRA out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from pydantic import BaseModel
from torch import Tensor

from safety.errors import ArtifactFormatError, ConfigError
from safety.lora.weights import LoraLayer, LoraWeights
from safety.registry import Registry

if TYPE_CHECKING:
    from safety.merge.calibration import Calibration


class MergeResult(NamedTuple):
    """One merged LoRA and how it came about."""

    weights: LoraWeights
    report: dict[str, Any]
    """Plain values for report.json: method, experts, layers, ranks, and the method's own figures."""


class MergeMethod(Protocol):
    """Merges LoRA experts of one architecture into one LoRA."""

    config_type: type[BaseModel]
    """The typed parameters that the method reads."""
    needs_statistics: bool
    """Whether the method reads calibration statistics."""

    def __call__(
        self, experts: Mapping[str, LoraWeights], statistics: Calibration | None, config: Any, /
    ) -> MergeResult:
        """Return the merge of the experts, which are taken in the mapping's order."""


merge_methods: Registry[MergeMethod] = Registry("merge method")


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
        coefficients: For each expert a number, or a tensor [outputs] with one number a row.
    """
    blocks = [
        layer.up * (c[:, None].to(layer.up.dtype) if isinstance(c, Tensor) else c)
        for layer, c in zip(layers, coefficients, strict=True)
    ]
    return LoraLayer(torch.cat([layer.down for layer in layers]), torch.cat(blocks, dim=1))


def base_report(
    method: str, experts: Mapping[str, LoraWeights], weights: LoraWeights, config: BaseModel
) -> dict[str, Any]:
    """Return the part of the report that every method gives."""
    return {
        "method": method,
        "experts": list(experts),
        "config": config.model_dump(mode="json"),
        "ranks": {name: layer.rank for name, layer in weights.items()},
        "parameters": sum(layer.down.numel() + layer.up.numel() for layer in weights.values()),
    }
