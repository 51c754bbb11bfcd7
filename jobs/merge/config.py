"""The configuration of merging."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

from safety.base import Config
from safety.judges.config import JudgeConfig
from safety.merge.calibration import CalibrationConfig
from safety.merge.co_merge import CoMergeConfig
from safety.merge.rendered_score import RenderedScoreConfig
from safety.merge.search import SearchConfig
from safety.merge.surrogate import SurrogateConfig
from safety.merge.task_arithmetic import TaskArithmeticConfig
from safety.rendering import RenderConfig


class MergeConfig(Config):
    """How the experts become one LoRA, and how its coefficients are searched."""

    co_merge: CoMergeConfig = Field(CoMergeConfig(), description="Co-Merge's parameters: where the search starts")
    concatenation: TaskArithmeticConfig = TaskArithmeticConfig()
    calibration: CalibrationConfig = CalibrationConfig()
    search: SearchConfig = SearchConfig()
    surrogate: SurrogateConfig = SurrogateConfig()
    confirm: RenderedScoreConfig = RenderedScoreConfig()
    render: RenderConfig = RenderConfig()
    judge: JudgeConfig = JudgeConfig()
    threads: int = Field(1, gt=0, description="CPU threads of one worker")
    workers: int = Field(2, gt=0, description="most trials, and most confirmations, at once")
    cpus_per_worker: float = Field(1.0, ge=0)
    gpus_per_worker: float = Field(0.0, ge=0, description="may be a share of one GPU")
    max_failures: int = Field(3, ge=0, description="restarts of the calibration, of a trial and of a confirming worker")
    timeout_s: float = Field(
        3600.0,
        gt=0,
        description="longest time for the calibration, for all trials together, and for the next confirmation",
    )

    def resources(self) -> dict[str, float]:
        """Return what one worker takes of the cluster, as Ray counts it."""
        asked = {"CPU": self.cpus_per_worker, "GPU": self.gpus_per_worker}
        return {name: amount for name, amount in asked.items() if amount > 0}

    def recipe(self, name: str) -> dict[str, Any]:
        """Return the settings that the merge called ``name`` depends on."""
        parts: dict[str, BaseModel] = {}
        if name == "concatenation":
            parts = {"concatenation": self.concatenation}
        elif name != "average":
            parts = {"co_merge": self.co_merge, "calibration": self.calibration}
        if name == "co-merge":
            parts |= {key: getattr(self, key) for key in ("search", "surrogate", "confirm", "render", "judge")}
        return {"name": name, **{key: part.model_dump(mode="json") for key, part in parts.items()}}
