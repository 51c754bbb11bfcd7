"""The sum of the experts, dW = scale * sum of dW_i (task arithmetic, Ilharco et al., arXiv:2212.04089)."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, Field

from safety.lora.weights import LoraWeights
from safety.merge.calibration import Calibration
from safety.merge.method import MergeResult, base_report, check_experts, merge_methods, stack


class ConcatenationConfig(BaseModel):
    """The one coefficient of task arithmetic."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    scale: float = Field(default=1.0, ge=0, allow_inf_nan=False, description="factor on the sum of the experts")


class Concatenation:
    """Sums the experts' dW exactly, by concatenating their factors."""

    config_type: type[BaseModel] = ConcatenationConfig
    needs_statistics = False

    def __call__(
        self, experts: Mapping[str, LoraWeights], _statistics: Calibration | None, config: ConcatenationConfig, /
    ) -> MergeResult:
        """Return the scaled sum, reading no statistics."""
        check_experts(experts)
        weights = LoraWeights(
            {
                name: stack([expert[name] for expert in experts.values()], [config.scale] * len(experts))
                for name in next(iter(experts.values()))
            }
        )
        return MergeResult(weights, base_report("concatenation", experts, weights, config))


merge_methods.register("concatenation")(Concatenation())
