"""Engines, which run an expert's forward and backward passes and updates: plain torch here, DeepSpeed in ``jobs``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from safety.experts.config import ExpertConfig
from safety.experts.expert import Expert
from safety.objectives import ObjectiveValue

MOMENTS = ("exp_avg", "exp_avg_sq")
BETAS = (0.9, 0.99)


class Engine(Protocol):
    """Forward, backward and update of one expert, on one worker or as one of several."""

    rank: int
    """This worker's number, from 0."""
    workers: int
    """Number of workers that share each step."""

    def forward(self, step: int, part: int) -> ObjectiveValue:
        """Return the loss of one part of a step's batch."""

    def backward(self, loss: Tensor) -> None:
        """Add a part's gradient; called ``accumulation`` times per step."""

    def update(self, learning_rate: float) -> float:
        """Clip, update and clear; return the gradient's norm before clipping."""

    def average(self, values: Tensor) -> Tensor:
        """Return the mean of a vector over all workers."""

    def moments(self) -> dict[str, Tensor]:
        """Return the optimizer's state by ``<moment>/<parameter>``; all workers call it together."""

    def restore(self, moments: Mapping[str, Tensor], step: int) -> None:
        """Restore the optimizer's state as it was after ``step`` updates."""


def make_optimizer(expert: Expert) -> torch.optim.AdamW:
    """Return the optimizer of an expert's LoRA."""
    config = expert.config
    return torch.optim.AdamW(
        list(expert.parameters_by_name().values()),
        lr=config.learning_rate,
        betas=BETAS,
        weight_decay=config.weight_decay,
    )


def read_moments(parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return copies of a plain optimizer's moments by ``<moment>/<parameter>``."""
    return {
        f"{moment}/{name}": optimizer.state[parameter][moment].detach().float().cpu().clone()
        for name, parameter in parameters.items()
        for moment in MOMENTS
    }


def write_moments(
    parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer, moments: Mapping[str, Tensor], step: int
) -> None:
    """Set a plain AdamW's state as it was after ``step`` updates."""
    for name, parameter in parameters.items():
        state = {moment: moments[f"{moment}/{name}"].to(parameter.device).clone() for moment in MOMENTS}
        optimizer.state[parameter] = {"step": torch.tensor(float(step)), **state}


class TorchEngine:
    """One worker, plain torch."""

    rank = 0
    workers = 1

    def __init__(self, expert: Expert) -> None:
        self.expert, self.config = expert, expert.config
        self.parameters = expert.parameters_by_name()
        self.optimizer = make_optimizer(expert)

    def forward(self, step: int, part: int) -> ObjectiveValue:
        """Return the loss of one part of a step's batch."""
        value: ObjectiveValue = self.expert(step, part)
        return value

    def backward(self, loss: Tensor) -> None:
        """Add a part's gradient."""
        (loss / self.config.accumulation).backward()  # type: ignore[no-untyped-call]

    def update(self, learning_rate: float) -> float:
        """Clip, update and clear; return the gradient's norm before clipping."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        norm = nn.utils.clip_grad_norm_(self.parameters.values(), self.config.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(norm)

    def average(self, values: Tensor) -> Tensor:
        """Return the values: there is one worker."""
        return values

    def moments(self) -> dict[str, Tensor]:
        """Return the optimizer's state."""
        return read_moments(self.parameters, self.optimizer)

    def restore(self, moments: Mapping[str, Tensor], step: int) -> None:
        """Restore the optimizer's state."""
        write_moments(self.parameters, self.optimizer, moments, step)


def learning_rate_at(step: int, config: ExpertConfig) -> float:
    """Return the rate of a step: a linear warm-up, then constant or half a cosine down to 5% of the peak."""
    if step < config.warmup:
        return config.learning_rate * (step + 1) / config.warmup
    if config.schedule == "constant":
        return config.learning_rate
    progress = (step - config.warmup) / max(1, config.steps - config.warmup)
    falling = 0.5 * (1.0 + math.cos(math.pi * progress))
    return config.learning_rate * (0.05 + 0.95 * falling)
