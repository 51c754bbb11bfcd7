"""The configuration of one expert's training."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from safety.base import Config
from safety.experts.health import HealthConfig
from safety.lora.config import LoraConfig
from safety.objectives.anchored_dpo import AnchoredDpoConfig
from safety.objectives.config import ObjectiveConfig


class ExpertConfig(Config):
    """An expert's objective, adapter, batches and schedule."""

    objective: ObjectiveConfig = AnchoredDpoConfig()
    lora: LoraConfig = LoraConfig()
    steps: int = Field(160, gt=0, description="optimizer steps")
    rows: int = Field(10, gt=0, description="global batch size in preference pairs, summed over workers")
    benign_rows: int = Field(8, ge=0, description="global batch size in benign rows, where the objective reads them")
    accumulation: int = Field(1, gt=0, description="forward passes that a step's rows are divided among")
    learning_rate: float = Field(0.015, gt=0)
    schedule: Literal["constant", "cosine"] = Field("cosine", description="after the warm-up")
    warmup: int = Field(10, ge=0, description="steps over which the rate rises to its peak")
    weight_decay: float = Field(0.0, ge=0)
    clip_norm: float = Field(1.0, gt=0, description="longest gradient")
    caption_dropout: float = Field(0.0, ge=0, lt=1, description="share of rows under the empty prompt")
    benign_dropout: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of benign rows under the empty prompt, whose prediction guidance subtracts at every step",
    )
    timesteps: tuple[float, float] = Field(
        (0.4, 1.0),
        description="the part of the noise schedule that is trained on; 1 is the noisiest, where the content is decided",
    )
    distinct_batches: int | None = Field(
        80,
        gt=0,
        description="number of distinct batches; then they repeat with the same noise, so reference losses are computed "
        "once; None: every batch is new. Where they do not cover all rows, the run and the card say how many they cover",
    )
    precision: Literal["auto", "bf16", "fp32"] = Field(
        "auto",
        description="the arithmetic over weights of float32: auto is bf16 where the device has it and fp32 where it would be "
        "emulated. Weights of a half type (model.dtype) compute in it. Errors are fp32 in any case",
    )
    checkpointing: Literal["auto", "on", "off"] = Field(
        "auto",
        description="whether activations are computed again in the backward pass (gradient checkpointing); auto: where a "
        "step does not fit into the free memory without it. The adapter differs by rounding alone",
    )
    micro_batch: Annotated[int, Field(gt=0)] | Literal["auto"] = Field(
        "auto",
        description="latents that go through the denoiser at once; auto: as many of a step's as fit into the free memory. "
        "The adapter differs by rounding alone",
    )
    threads: int = Field(1, gt=0, description="CPU threads of a worker; part of what the adapter depends on")
    checkpoint_every: int = Field(25, gt=0, description="steps between two checkpoints")
    validate_every: int = Field(50, gt=0, description="steps between two validations")
    validation_rows: int = Field(16, ge=0, description="rows of a validation; 0: none")
    health: HealthConfig = HealthConfig()

    @model_validator(mode="after")
    def _consistent(self) -> ExpertConfig:
        low, high = self.timesteps
        if not 0.0 <= low < high <= 1.0:
            raise ValueError(f"timesteps {self.timesteps} must be a rising pair within 0 and 1")
        self.check_parts(1)
        weight = getattr(self.objective, "benign_weight", 0.0)
        if weight > 0 and self.benign_rows == 0:
            raise ValueError("benign_weight is over 0 and benign_rows is 0; raise benign_rows or set the weight to 0")
        return self

    def check_parts(self, workers: int) -> None:
        """Raise ValueError when a step's rows cannot be spread evenly over workers and passes."""
        parts = workers * self.accumulation
        for name, rows in (("rows", self.rows), ("benign_rows", self.benign_rows)):
            if rows % parts:
                raise ValueError(
                    f"{name} is {rows}, which {workers} workers with accumulation {self.accumulation} cannot share "
                    f"evenly; use a multiple of {parts}"
                )
