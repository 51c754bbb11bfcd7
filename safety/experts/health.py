"""Health alarms of training: it diverges, it does not learn, or it learns by making winners worse."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from enum import StrEnum
from typing import NamedTuple

from pydantic import Field

from safety.base import Config
from safety.errors import TrainingHealthError


class HealthConfig(Config):
    """Thresholds of the alarms."""

    window: int = Field(
        15, gt=0, description="steps that a check averages over; the first check is this long after the warm-up"
    )
    least_gain: float = Field(
        0.002, ge=0, description="least distance from ln 2 that the preference loss must have reached, in nats"
    )
    winner_rise: float = Field(
        1.05, gt=1, description="winners' error over the reference's from which it counts as rising"
    )
    saturated_loss: float = Field(
        0.005, ge=0, description="preference loss below which the sigmoid is flat and gives no gradient"
    )


class AlarmKind(StrEnum):
    """The kinds of trouble that do not stop training."""

    NOT_LEARNING = "not-learning"
    WINNER_RISING = "winner-rising"
    SATURATED = "saturated"


ADVICE = {
    AlarmKind.NOT_LEARNING: "the preference loss is still ln 2 after the warm-up; raise beta, the learning rate or the steps",
    AlarmKind.WINNER_RISING: "the winners' error is above the base model's; use anchored-dpo, or raise its anchor_weight",
    AlarmKind.SATURATED: "the preference loss is almost zero, so the preference gives no gradient; lower beta",
}


class Alarm(NamedTuple):
    """An alarm and the step that raised it."""

    kind: AlarmKind
    step: int
    message: str


class HealthMonitor:
    """Watches the steps of one training; each kind of alarm is raised once."""

    def __init__(self, config: HealthConfig, warmup: int) -> None:
        """Start checks one window after the warm-up."""
        self._config = config
        self._first_check = warmup + config.window
        self._recent: deque[Mapping[str, float]] = deque(maxlen=config.window)
        self.alarms: list[Alarm] = []

    def observe(self, step: int, metrics: Mapping[str, float]) -> list[Alarm]:
        """Record a finished step and return the alarms that it raises.

        Raises:
            TrainingHealthError: A figure is not finite, or no gradient reaches the LoRA.
        """
        _check(step, metrics)
        self._recent.append(metrics)
        if step < self._first_check:
            return []
        known = {alarm.kind for alarm in self.alarms}
        new = [Alarm(kind, step, ADVICE[kind]) for kind in self._raised() if kind not in known]
        self.alarms += new
        return new

    def _raised(self) -> list[AlarmKind]:
        found = []
        if abs(self._mean("dpo_loss") - math.log(2.0)) < self._config.least_gain:
            found.append(AlarmKind.NOT_LEARNING)
        if self._mean("winner_error") > self._config.winner_rise * self._mean("reference_winner_error"):
            found.append(AlarmKind.WINNER_RISING)
        if self._mean("dpo_loss") < self._config.saturated_loss:
            found.append(AlarmKind.SATURATED)
        return found

    def _mean(self, name: str) -> float:
        return sum(metrics[name] for metrics in self._recent) / len(self._recent)


def _check(step: int, metrics: Mapping[str, float]) -> None:
    odd = [name for name, value in metrics.items() if not math.isfinite(value)]
    if odd:
        raise TrainingHealthError(
            f"{odd[0]} is not finite at step {step}",
            field="train.expert",
            fix="lower learning_rate or beta, or use precision fp32",
        )
    if metrics["gradient_norm"] == 0.0:
        raise TrainingHealthError(
            f"no gradient reaches the LoRA at step {step}",
            field="train.expert",
            fix="lower objective.beta when the preference is saturated, and check lora.targets",
        )
