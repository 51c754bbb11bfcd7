"""The protocol of a training objective, the registry, and the errors that every objective reads."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from torch import Tensor

from safety.base import Config
from safety.registry import Registry


class PreferenceErrors(NamedTuple):
    """Denoising errors of policy and reference on a batch, in fp32 whatever the networks computed in."""

    winner: Tensor
    """The policy's error on the preferred images, [B]: mean over C, h, w of (prediction - target)^2."""
    loser: Tensor
    """The policy's error on the rejected images, [B], with the winner's noise and timestep."""
    reference_winner: Tensor
    """The reference's error on the preferred images, [B], without gradient."""
    reference_loser: Tensor
    """The reference's error on the rejected images, [B], without gradient."""
    drift: Tensor
    """Mean over C, h, w of (policy - reference)^2 on benign rows, [M]; M is 0 where there are none."""


class ObjectiveValue(NamedTuple):
    """A batch's loss, with gradient, and named metrics without; all scalars."""

    loss: Tensor
    metrics: dict[str, Tensor]


class ObjectiveParameters(Config):
    """The config of one objective. A subclass narrows ``name`` to the literal that selects it in YAML."""

    name: str


class Objective(Protocol):
    """The loss that an expert minimises."""

    needs_benign: bool
    """Whether it reads ``PreferenceErrors.drift``; batches hold no benign rows where it does not."""

    def __call__(self, errors: PreferenceErrors) -> ObjectiveValue:
        """Return the mean loss over a batch, and its metrics."""


class ObjectiveType(Protocol):
    """An objective's class, as the registry holds it."""

    @property
    def config_type(self) -> type[ObjectiveParameters]:
        """Return the config that the class is built from."""

    def __call__(self, config: Any, /) -> Objective:
        """Return the configured objective."""


objectives: Registry[ObjectiveType] = Registry("objective", __package__)
