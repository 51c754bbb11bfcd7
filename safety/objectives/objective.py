"""The protocol of a training objective, the registry, and the errors that every objective reads."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from torch import Tensor

from safety.registry import Registry


class PreferenceErrors(NamedTuple):
    """What policy and reference make of a batch; fp32 whatever the networks computed in."""

    winner: Tensor
    """The policy's error on the preferred images, [B]: mean over C, h, w of (prediction - target)^2."""
    loser: Tensor
    """The same on the others, [B], with the winner's noise and timestep."""
    reference_winner: Tensor
    """The reference's error on the preferred images, [B], without gradient."""
    reference_loser: Tensor
    """The reference's error on the others, [B], without gradient."""
    drift: Tensor
    """Mean over C, h, w of (policy - reference)^2 on benign rows, [M]; M is 0 where there are none."""


class ObjectiveValue(NamedTuple):
    """A batch's loss, with a gradient, and named figures without one, all scalars."""

    loss: Tensor
    metrics: dict[str, Tensor]


class Objective(Protocol):
    """What an expert minimises."""

    needs_benign: bool
    """Whether it reads ``PreferenceErrors.drift``; benign rows are left out where it does not."""

    def __call__(self, errors: PreferenceErrors) -> ObjectiveValue:
        """Return the mean loss over a batch, and its metrics."""


class ObjectiveType(Protocol):
    """What the registry holds: an objective's class, built from its own config."""

    def __call__(self, config: Any, /) -> Objective:
        """Return the configured objective."""


objectives: Registry[ObjectiveType] = Registry("objective")
