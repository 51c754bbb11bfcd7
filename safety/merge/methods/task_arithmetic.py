"""The sum of the experts, dW = scale * sum of dW_i (task arithmetic, Ilharco et al., arXiv:2212.04089)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from safety.lora.weights import LoraWeights
from safety.merge.calibration import Calibration
from safety.merge.experts import scaled_sum
from safety.merge.method import MergeResult, MethodConfig, Need, base_report, merge_methods


class TaskArithmeticConfig(MethodConfig):
    """The one coefficient of task arithmetic."""

    name: Literal["task-arithmetic"] = "task-arithmetic"
    scale: float = Field(1.0, ge=0, description="factor on the sum of the experts")


class TaskArithmetic:
    """Sums the experts' dW exactly, by concatenating their factors."""

    label = "Task arithmetic"
    config_type: type[MethodConfig] = TaskArithmeticConfig
    needs: frozenset[Need] = frozenset()

    def __call__(
        self, experts: Mapping[str, LoraWeights], _statistics: Calibration | None, config: TaskArithmeticConfig, /
    ) -> MergeResult:
        """Return the scaled sum; the statistics are not read."""
        weights = scaled_sum(experts, config.scale)
        return MergeResult(weights, base_report(experts, weights, config))


merge_methods.register("task-arithmetic")(TaskArithmetic())
