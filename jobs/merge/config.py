"""The configuration of merging."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from safety.judges import JudgeConfig
from safety.merge.calibration import CalibrationConfig
from safety.merge.co_merge import CoMergeConfig
from safety.merge.rendered_score import ConfirmConfig
from safety.merge.search import SearchConfig
from safety.merge.surrogate import SurrogateConfig
from safety.merge.task_arithmetic import ConcatenationConfig
from safety.rendering import RenderConfig


class MergeConfig(BaseModel):
    """How the experts become one LoRA, and how its coefficients are searched."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    co_merge: CoMergeConfig = Field(
        default=CoMergeConfig(), description="Co-Merge's parameters: where the search starts"
    )
    concatenation: ConcatenationConfig = ConcatenationConfig()
    calibration: CalibrationConfig = CalibrationConfig()
    search: SearchConfig = SearchConfig()
    surrogate: SurrogateConfig = SurrogateConfig()
    confirm: ConfirmConfig = ConfirmConfig()
    render: RenderConfig = RenderConfig()
    judge: JudgeConfig = JudgeConfig()
    threads: int = Field(default=1, gt=0, description="CPU threads of one worker")
    workers: int = Field(default=2, gt=0, description="most trials, and most confirmations, at once")
    cpus_per_worker: float = Field(default=1.0, ge=0)
    gpus_per_worker: float = Field(default=0.0, ge=0, description="may be a share of one GPU")
    max_failures: int = Field(
        default=3, ge=0, description="restarts of the calibration, of a trial and of a confirming worker"
    )
    timeout_s: float = Field(
        default=3600.0,
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
