"""The configuration of merging."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from safety.base import Config
from safety.judges.config import JudgeConfig
from safety.merge.calibration import CalibrationConfig
from safety.merge.method import (
    CALIBRATION,
    SEARCHED,
    START,
    AnyMethodConfig,
    MethodConfig,
    merge_methods,
    name_baselines,
)
from safety.merge.methods.co_merge import CoMergeConfig
from safety.merge.rendered_score import RenderedScoreConfig
from safety.merge.search import SearchConfig
from safety.merge.surrogate import SurrogateConfig
from safety.rendering import RenderConfig


class MergeConfig(Config):
    """The merge of the experts: Co-Merge, the search for its coefficients, and the baselines it is compared with."""

    co_merge: CoMergeConfig = Field(CoMergeConfig(), description="Co-Merge's parameters: where the search starts")
    baselines: tuple[AnyMethodConfig, ...] = Field(
        ("average", "task-arithmetic"),
        validate_default=True,
        description="merges to compare with: each a merge method's name, or a mapping of its name and parameters",
    )
    calibration: CalibrationConfig = CalibrationConfig()
    search: SearchConfig = SearchConfig()
    surrogate: SurrogateConfig = SurrogateConfig()
    confirm: RenderedScoreConfig = RenderedScoreConfig()
    render: RenderConfig = RenderConfig()
    judge: JudgeConfig = JudgeConfig()
    threads: int = Field(1, gt=0, description="CPU threads of one worker")
    workers: int = Field(2, gt=0, description="maximum number of trials, or of rendered candidates, at once")
    cpus_per_worker: float = Field(1.0, ge=0)
    gpus_per_worker: float = Field(0.0, ge=0, description="may be a fraction of one GPU")
    max_failures: int = Field(3, ge=0, description="restarts of the calibration, of a trial and of a rendering worker")
    timeout_s: float = Field(
        3600.0,
        gt=0,
        description="longest time for the calibration, for all trials together, and for the next rendered candidate",
    )

    def resources(self) -> dict[str, float]:
        """Return the resources of one worker, as Ray counts them."""
        return {"CPU": self.cpus_per_worker, "GPU": self.gpus_per_worker}

    def merges(self) -> dict[str, MethodConfig]:
        """Return every merge of the run by name; the searched one has the parameters that its search starts from."""
        return {SEARCHED: self.co_merge, START: self.co_merge, **name_baselines(self.baselines)}

    def recipe(self, method: MethodConfig) -> dict[str, Any]:
        """Return the settings that a merge by the given method depends on."""
        calibrated = CALIBRATION in merge_methods[method.name].needs
        return {
            "method": method.model_dump(mode="json"),
            **({"calibration": self.calibration.model_dump(mode="json")} if calibrated else {}),
        }

    def search_recipe(self) -> dict[str, Any]:
        """Return the settings that the result of the search depends on, beside where it starts."""
        return self.model_dump(mode="json", include={"search", "surrogate", "confirm", "render", "judge"})
