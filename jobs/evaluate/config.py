"""The configuration of the evaluation."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from safety.base import Config
from safety.embedded import EMBEDDED_FEATURES
from safety.evaluation.bootstrap import BootstrapConfig
from safety.evaluation.goals import GoalsConfig
from safety.evaluation.plan import EvaluationCounts
from safety.judges.config import JudgeConfig
from safety.rendering import RenderConfig

PLACEMENT = frozenset({"actors", "cpus_per_actor", "gpus_per_actor", "timeout_s"})
"""Fields that say where the work runs: they cannot change a figure, so the report's id leaves them out."""


class EvaluateConfig(Config):
    """What is evaluated, and how."""

    counts: EvaluationCounts = EvaluationCounts()
    experts: bool = Field(True, description="evaluate each expert by itself too")
    render: RenderConfig = RenderConfig()
    judge: JudgeConfig = JudgeConfig()
    features: str = Field(EMBEDDED_FEATURES, description="a name in the feature extractors' registry")
    bootstrap: BootstrapConfig = BootstrapConfig()
    goals: GoalsConfig = GoalsConfig()
    group_size: int = Field(32, gt=0, description="images of one unit of work: rendered, measured and stored at once")
    threads: int = Field(1, gt=0, description="CPU threads of one actor; part of what a picture depends on")
    actors: int = Field(2, gt=0, description="most actors at once")
    cpus_per_actor: float = Field(1.0, ge=0)
    gpus_per_actor: float = Field(0.0, ge=0, description="may be a share of one GPU")
    timeout_s: float = Field(3600.0, gt=0, description="longest wait for the next finished group")

    def recipe(self) -> dict[str, Any]:
        """Return the settings that the figures depend on."""
        return self.model_dump(mode="json", exclude=set(PLACEMENT))
