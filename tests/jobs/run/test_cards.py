"""The check of memory takes a worker's own share of a device, as the worker itself does."""

from __future__ import annotations

import os
from typing import Any

import pytest

from cluster.preflight.check import Status
from jobs.run import cards
from jobs.run.config import RunConfig
from jobs.train import worker
from safety.experts.memory import GIB, StepMemory

NEEDED = StepMemory(base=GIB, adapter=0, plain=GIB, checkpointed=None, kept=0)


@pytest.mark.parametrize(
    ("device", "train", "share"),
    [
        ("cpu", {"cpus_per_worker": 1.0}, 1 / (os.cpu_count() or 1)),
        ("cpu", {"cpus_per_worker": 1024.0}, 1.0),
        ("cuda", {"gpus_per_worker": 0.25}, 0.25),
        ("cuda", {}, 1.0),
    ],
)
def test_a_step_is_held_against_what_a_worker_may_take(
    device: str, train: dict[str, Any], share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunConfig.model_validate({"run": {"name": "x", "output": "out"}, "model": {"device": device}, "train": train})
    asked: list[float] = []

    def free(_device: object, share: float) -> int:
        asked.append(share)
        return 100 * GIB

    monkeypatch.setattr(cards, "needed_memory", lambda *_: NEEDED)
    for module in (cards, worker):
        monkeypatch.setattr(module, "free_bytes", free)
    assert cards.step_finding(run).status is Status.PASS
    task: Any = type("Task", (), {"model": run.model, "config": run.train})
    worker._room(task)
    assert asked == [share, share]
