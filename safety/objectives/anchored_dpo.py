"""Diffusion-DPO with two anchors: the winner's own denoising error, and the drift on benign prompts.

Plain DPO only widens a gap, and may do so by letting both errors rise. Adding the winner's error to the loss is the
idea of DPO-Positive (Pal et al., https://arxiv.org/abs/2402.13228), here as a plain denoising loss.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch.nn import functional as F

from safety.objectives.diffusion_dpo import preference_logits, preference_metrics
from safety.objectives.objective import ObjectiveParameters, ObjectiveValue, PreferenceErrors, objectives


class AnchoredDpoConfig(ObjectiveParameters):
    """The strength of the preference and of both anchors."""

    name: Literal["anchored-dpo"] = "anchored-dpo"
    beta: float = Field(100.0, gt=0, description="as in diffusion-dpo")
    anchor_weight: float = Field(30.0, ge=0, description="weight of the winner's own denoising error")
    benign_weight: float = Field(900.0, ge=0, description="weight of the squared drift on benign rows")


@objectives.register("anchored-dpo")
class AnchoredDpo:
    """L = DPO + anchor_weight * winner's error + benign_weight * drift, each averaged over its rows."""

    config_type = AnchoredDpoConfig

    def __init__(self, config: AnchoredDpoConfig) -> None:
        self.config = config
        self.needs_benign = config.benign_weight > 0

    def __call__(self, errors: PreferenceErrors) -> ObjectiveValue:
        """Return the loss and its metrics, the anchors' included."""
        logits = preference_logits(errors, self.config.beta)
        dpo_loss = -F.logsigmoid(logits).mean()
        # The mean over no rows would be NaN.
        drift = errors.drift.sum() / max(1, errors.drift.numel())
        loss = dpo_loss + self.config.anchor_weight * errors.winner.mean() + self.config.benign_weight * drift
        metrics = {"loss": loss.detach(), **preference_metrics(errors, logits, dpo_loss), "drift": drift.detach()}
        return ObjectiveValue(loss, metrics)
