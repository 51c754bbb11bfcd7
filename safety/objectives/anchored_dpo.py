"""Diffusion-DPO with anchors: the winner is denoised well in itself, and benign prompts stay as they were.

Plain DPO only widens a gap, and may do so by letting both errors rise. The winner's own error in the loss is the
idea of DPO-Positive (Pal et al., https://arxiv.org/abs/2402.13228), in the form of a plain denoising loss.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch.nn import functional as F

from safety.base import Config
from safety.objectives.diffusion_dpo import preference_logits, preference_metrics
from safety.objectives.objective import ObjectiveValue, PreferenceErrors, objectives


class AnchoredDpoConfig(Config):
    """The strength of the preference and of both anchors."""

    name: Literal["anchored-dpo"] = "anchored-dpo"
    beta: float = Field(100.0, gt=0, description="as in diffusion-dpo")
    anchor_weight: float = Field(30.0, ge=0, description="weight of the winner's own denoising error")
    benign_weight: float = Field(900.0, ge=0, description="weight of the squared drift on benign rows")


@objectives.register("anchored-dpo")
class AnchoredDpo:
    """L = DPO + anchor_weight * winner's error + benign_weight * drift, each averaged over its rows."""

    def __init__(self, config: AnchoredDpoConfig) -> None:
        self.config = config
        self.needs_benign = config.benign_weight > 0

    def __call__(self, errors: PreferenceErrors) -> ObjectiveValue:
        """Return the loss and its metrics, with those of the anchors."""
        logits = preference_logits(errors, self.config.beta)
        dpo_loss = -F.logsigmoid(logits).mean()
        # The mean of no rows is not a number.
        drift = errors.drift.sum() / max(1, errors.drift.numel())
        loss = dpo_loss + self.config.anchor_weight * errors.winner.mean() + self.config.benign_weight * drift
        metrics = {"loss": loss.detach(), **preference_metrics(errors, logits, dpo_loss), "drift": drift.detach()}
        return ObjectiveValue(loss, metrics)
