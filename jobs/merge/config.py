"""The configuration of merging and of consolidation."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, field_validator

from jobs.train.config import TrainConfig
from safety.base import Config
from safety.experts.config import ExpertConfig
from safety.judges.judge import JudgeConfig
from safety.lora.config import LoraConfig
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
from safety.objectives.anchored_dpo import AnchoredDpoConfig
from safety.objectives.config import ObjectiveConfig
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
    max_failures: int = Field(
        3,
        ge=0,
        description="restarts of the calibration, of a trial and of a rendering worker, after failures that may pass",
    )
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


class ConsolidateConfig(Config):
    """The fine-tuning of the merged adapter on the pairs of all categories and on benign rows, and its scales.

    All other settings are those of the experts (``train``): the schedule, the precision, the workers and resources.
    """

    objective: ObjectiveConfig = Field(
        AnchoredDpoConfig(benign_weight=300.0),
        description="a smaller benign weight than an expert's is enough: one adapter acts on benign rows, not seven",
    )
    steps: int = Field(160, gt=0)
    rows: int = Field(14, gt=0, description="global batch size in preference pairs, summed over workers")
    benign_rows: int = Field(20, ge=0, description="benign rows per step, summed over workers")
    benign_dropout: float = Field(
        0.3,
        ge=0,
        lt=1,
        description="share of benign rows under the empty prompt; without it nothing preserves the prediction that guidance "
        "subtracts, and FID rises twice as much",
    )
    learning_rate: float = Field(
        1e-3, gt=0, description="lower than an expert's: training starts from the merge, not from zero"
    )
    timesteps: tuple[float, float] = Field(
        (0.4, 1.0),
        description="range of the noise schedule to train on; from 0.05 on, where benign rows also preserve fine detail, FID "
        "rises less and more benign objects are lost",
    )
    distinct_batches: int | None = Field(None, gt=0, description="as for an expert; none: every batch is new")
    scales: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (1.0, 1.1, 1.2, 1.3, 1.4),
        min_length=1,
        description="factors of the trained adapter that are rendered on validation prompts; the best one is kept, judged "
        "by a parabola through the objectives where there are four scales or more",
    )

    @field_validator("scales")
    @classmethod
    def _each_once(cls, scales: tuple[float, ...]) -> tuple[float, ...]:
        if len(set(scales)) < len(scales):
            raise ValueError("scales names one twice; name each once")
        return scales

    def check_parts(self, expert: ExpertConfig, workers: int) -> None:
        """Raise ValueError when a step's rows cannot be spread evenly over the workers and passes of an expert."""
        expert.model_copy(update={"rows": self.rows, "benign_rows": self.benign_rows}).check_parts(workers)

    def train(self, config: TrainConfig, lora: LoraConfig) -> TrainConfig:
        """Return the training's settings: the run's own, overridden by those given here."""
        expert: dict[str, Any] = {
            **config.expert.model_dump(),
            **self.model_dump(exclude={"scales"}),
            "lora": lora.model_dump(),
        }
        return TrainConfig.model_validate({**config.model_dump(), "expert": expert, "gate": None})
