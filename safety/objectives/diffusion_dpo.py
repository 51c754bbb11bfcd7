"""Diffusion-DPO: a preference for the winner, measured by how well policy and reference denoise both images.

Wallace et al., Diffusion Model Alignment Using Direct Preference Optimization, https://arxiv.org/abs/2311.12908
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from safety.objectives.objective import ObjectiveParameters, ObjectiveValue, PreferenceErrors, objectives


class DiffusionDpoConfig(ObjectiveParameters):
    """The strength of the preference."""

    name: Literal["diffusion-dpo"] = "diffusion-dpo"
    beta: float = Field(
        300.0,
        gt=0,
        description="used with a factor 1/2; choose it by the size of the errors: the usual 5000 is for SD 1.5",
    )


def preference_logits(errors: PreferenceErrors, beta: float) -> Tensor:
    """Return -(beta / 2) * [(winner - loser) - (reference_winner - reference_loser)], fp32 [B].

    diffusers' script writes half this beta without the factor 1/2, which is the same strength.
    """
    policy = errors.winner - errors.loser
    reference = errors.reference_winner - errors.reference_loser
    return -(beta / 2.0) * (policy - reference)


def preference_metrics(errors: PreferenceErrors, logits: Tensor, dpo_loss: Tensor) -> dict[str, Tensor]:
    """Return the metrics common to all preference objectives, as detached scalars."""
    with torch.no_grad():
        # A margin of exactly zero, as at the first step, counts as half correct.
        correct = (logits > 0).float() + 0.5 * (logits == 0).float()
        return {
            "dpo_loss": dpo_loss.detach(),
            "implicit_accuracy": correct.mean(),
            "margin": logits.mean(),
            "winner_error": errors.winner.mean(),
            "loser_error": errors.loser.mean(),
            "reference_winner_error": errors.reference_winner.mean(),
            "reference_loser_error": errors.reference_loser.mean(),
        }


@objectives.register("diffusion-dpo")
class DiffusionDpo:
    """L = -log sigmoid(logits), averaged over the batch; ln 2 where the policy is the reference."""

    config_type = DiffusionDpoConfig
    needs_benign = False

    def __init__(self, config: DiffusionDpoConfig) -> None:
        self.config = config

    def __call__(self, errors: PreferenceErrors) -> ObjectiveValue:
        """Return the loss and its metrics."""
        logits = preference_logits(errors, self.config.beta)
        loss = -F.logsigmoid(logits).mean()
        return ObjectiveValue(loss, {"loss": loss.detach(), **preference_metrics(errors, logits, loss)})
