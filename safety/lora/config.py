"""The config of an expert's LoRA."""

from __future__ import annotations

from pydantic import Field

from safety.base import Config
from safety.families.family import ModelFamily

CROSS_ATTENTION = ("attn2.to_k", "attn2.to_v")


class LoraConfig(Config):
    """Size and place of a LoRA: dW = (alpha / rank) * B @ A on every target layer."""

    rank: int = Field(8, gt=0)
    alpha: float = Field(8.0, gt=0, description="the update is scaled by alpha / rank")
    targets: tuple[str, ...] | None = Field(
        CROSS_ATTENTION,
        min_length=1,
        description="module name endings to adapt, by default the keys and values of the cross-attention alone: what the "
        "prompt says is changed, not how it is drawn. In families without a cross-attention the default stands for the "
        "layers that read the prompt alone there (context_embedder); None: those of the base model's family",
    )

    def targets_on(self, model: ModelFamily | type[ModelFamily]) -> tuple[str, ...]:
        """Return the endings of the layers that are adapted on a model, or on a family's class of models."""
        if self.targets == CROSS_ATTENTION:
            # Transformers may have an "attn2" too, and in theirs the image alone attends to itself.
            return model.text_targets or model.lora_targets
        return self.targets or model.lora_targets

    def reads_prompt(self, model: ModelFamily | type[ModelFamily]) -> bool:
        """Return whether one of the adapted layers reads the prompt alone, and so can be gated.

        None of a family's own layers (``targets`` None) does in transformers whose attention mixes prompt and image.
        """
        return any(
            f".{target}".endswith(f".{reader}") or f".{reader}".endswith(f".{target}")
            for target in self.targets_on(model)
            for reader in model.text_targets
        )
