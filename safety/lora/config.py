"""The size of an expert's LoRA."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class LoraConfig(BaseModel):
    """How an expert adapts the denoiser: dW = (alpha / rank) * B @ A on every target layer."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    rank: int = Field(default=8, gt=0)
    alpha: float = Field(default=8.0, gt=0, description="the update is scaled by alpha / rank")
    targets: tuple[str, ...] | None = Field(
        default=None, min_length=1, description="module name endings to adapt; None: those of the base model's family"
    )
