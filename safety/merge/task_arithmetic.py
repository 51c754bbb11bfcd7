"""The sum of the experts, dW = scale * sum of dW_i (task arithmetic, Ilharco et al., arXiv:2212.04089)."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel, Field

from safety.base import Config
from safety.lora.weights import LoraWeights
from safety.merge.calibration import Calibration
from safety.merge.method import MergeResult, base_report, check_experts, merge_methods, stack


class TaskArithmeticConfig(Config):
    """The one coefficient of task arithmetic."""

    scale: float = Field(1.0, ge=0, allow_inf_nan=False, description="factor on the sum of the experts")


class TaskArithmetic:
    """Sums the experts' dW exactly, by concatenating their factors."""

    config_type: type[BaseModel] = TaskArithmeticConfig
    needs_statistics = False

    def __call__(
        self, experts: Mapping[str, LoraWeights], _statistics: Calibration | None, config: TaskArithmeticConfig, /
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


merge_methods.register("concatenation")(TaskArithmetic())
