"""The configuration of consolidation."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, field_validator

from jobs.train.config import TrainConfig
from safety.base import Config
from safety.lora.config import LoraConfig
from safety.objectives.anchored_dpo import AnchoredDpoConfig
from safety.objectives.config import ObjectiveConfig


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

    def train(self, config: TrainConfig, lora: LoraConfig) -> TrainConfig:
        """Return the training's settings: the run's own, overridden by those given here."""
        expert: dict[str, Any] = {
            **config.expert.model_dump(),
            **self.model_dump(exclude={"scales"}),
            "lora": lora.model_dump(),
        }
        return TrainConfig.model_validate({**config.model_dump(), "expert": expert, "gate": None})
