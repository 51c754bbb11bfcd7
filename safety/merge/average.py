"""The uniform average of the experts, dW = (1/N) sum of dW_i (Wortsman et al., "Model soups", arXiv:2203.05482)."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel

from safety.base import Config
from safety.lora.weights import LoraWeights
from safety.merge.calibration import Calibration
from safety.merge.method import MergeResult, base_report, check_experts, merge_methods, stack


class AverageConfig(Config):
    """The average has no parameter."""


class Average:
    """Averages the experts' dW exactly, by concatenating their factors and scaling by 1/N."""

    config_type: type[BaseModel] = AverageConfig
    needs_statistics = False

    def __call__(
        self, experts: Mapping[str, LoraWeights], _statistics: Calibration | None, config: AverageConfig, /
    ) -> MergeResult:
        """Return the uniform average, reading no statistics."""
        check_experts(experts)
        share = 1.0 / len(experts)
        weights = LoraWeights(
            {
                name: stack([expert[name] for expert in experts.values()], [share] * len(experts))
                for name in next(iter(experts.values()))
            }
        )
        return MergeResult(weights, base_report("average", experts, weights, config))


merge_methods.register("average")(Average())
