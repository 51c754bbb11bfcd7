"""The config of an expert's LoRA."""

from __future__ import annotations

from pydantic import Field

from safety.base import Config


class LoraConfig(Config):
    """Size and place of a LoRA: dW = (alpha / rank) * B @ A on every target layer."""

    rank: int = Field(8, gt=0)
    alpha: float = Field(8.0, gt=0, description="the update is scaled by alpha / rank")
    targets: tuple[str, ...] | None = Field(
        None, min_length=1, description="module name endings to adapt; None: those of the base model's family"
    )
