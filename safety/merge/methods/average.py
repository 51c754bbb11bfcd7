"""The uniform average of the experts, dW = (1/N) sum of dW_i (Wortsman et al., "Model soups", arXiv:2203.05482)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from safety.lora.weights import LoraWeights
from safety.merge.calibration import Calibration
from safety.merge.experts import scaled_sum
from safety.merge.method import MergeResult, MethodConfig, Need, base_report, merge_methods


class AverageConfig(MethodConfig):
    """The average has no parameter."""

    name: Literal["average"] = "average"


class Average:
    """Averages the experts' dW exactly, by concatenating their factors and scaling by 1/N."""

    label = "Average"
    config_type: type[MethodConfig] = AverageConfig
    needs: frozenset[Need] = frozenset()

    def __call__(
        self, experts: Mapping[str, LoraWeights], _statistics: Calibration | None, config: AverageConfig, /
    ) -> MergeResult:
        """Return the uniform average; the statistics are not read."""
        weights = scaled_sum(experts, 1.0 / max(1, len(experts)))
        return MergeResult(weights, base_report(experts, weights, config))


merge_methods.register("average")(Average())
