"""Alarms: which course of training sets off which."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from safety.errors import TrainingHealthError
from safety.experts.health import AlarmKind, HealthConfig, HealthMonitor

Course = Callable[[int], dict[str, float]]
BASE = {"gradient_norm": 0.5, "dpo_loss": 0.4, "winner_error": 0.2, "reference_winner_error": 0.2}


def watch(course: Course, steps: int = 60) -> HealthMonitor:
    monitor = HealthMonitor(HealthConfig(window=10), warmup=10)
    for step in range(steps):
        monitor.observe(step, BASE | course(step))
    return monitor


def test_a_healthy_course_is_silent() -> None:
    assert watch(lambda step: {"dpo_loss": math.log(2.0) * 0.97**step}).alarms == []


def test_a_loss_of_ln_2_is_told_once_and_only_after_the_warm_up() -> None:
    [alarm] = watch(lambda _: {"dpo_loss": math.log(2.0) + 1e-5}).alarms
    assert (alarm.kind, alarm.step) == (AlarmKind.NOT_LEARNING, 20)
    assert "ln 2" in alarm.message


def test_a_rising_winner_error_is_told_though_the_loss_falls() -> None:
    [alarm] = watch(lambda step: {"winner_error": 0.2 + 0.002 * step}).alarms
    assert alarm.kind is AlarmKind.WINNER_RISING
    assert "anchor" in alarm.message


def test_one_bad_batch_is_no_alarm() -> None:
    assert watch(lambda step: {"winner_error": 0.25 if step == 30 else 0.2}).alarms == []


@pytest.mark.parametrize("name", ["dpo_loss", "gradient_norm", "winner_error"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_ends_the_run(name: str, value: float) -> None:
    with pytest.raises(TrainingHealthError, match=f"{name} is not finite at step 7"):
        watch(lambda step: {name: value} if step == 7 else {})


def test_no_gradient_ends_the_run() -> None:
    with pytest.raises(TrainingHealthError, match="no gradient reaches the LoRA at step 3"):
        watch(lambda step: {"gradient_norm": 0.0} if step == 3 else {})


def test_a_saturated_preference_is_told() -> None:
    [alarm] = watch(lambda step: {"dpo_loss": 0.5 * 0.8**step}).alarms
    assert alarm.kind is AlarmKind.SATURATED
    assert "beta" in alarm.message
