"""The training loop of one expert: resumable, with health checks, equal on one worker or several, for any engine."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from safety.experts.checkpoint import Checkpoint, Checkpointer, Metrics
from safety.experts.engine import Engine, learning_rate_at
from safety.experts.expert import Expert
from safety.experts.health import Alarm, HealthMonitor

logger = logging.getLogger(__name__)

Observer = Callable[[int, Metrics], None]
"""Called with each finished step's number, from 0, and its metrics."""


class TrainingResult(NamedTuple):
    """The outcome of training beside the adapter."""

    history: list[Metrics]
    """Each step's metrics, with ``step``."""
    alarms: list[Alarm]
    resumed_from: int
    """Number of steps done by an earlier attempt."""


def load_adapter(expert: Expert, checkpoint: Checkpoint) -> None:
    """Set the LoRA to a checkpoint's; call it before an engine that copies parameters is created."""
    with torch.no_grad():
        for name, parameter in expert.parameters_by_name().items():
            parameter.copy_(checkpoint.adapter[name])


class ExpertTraining:
    """Trains one expert from where a checkpoint left it."""

    def __init__(
        self, expert: Expert, engine: Engine, checkpointer: Checkpointer | None = None, start: Checkpoint | None = None
    ) -> None:
        """Prepare training.

        Args:
            expert: The expert; call ``load_adapter`` on it first when there is a ``start``.
            engine: Runs its passes and updates.
            checkpointer: Writes the checkpoints, on the first worker alone; None writes none.
            start: The checkpoint to resume from.
        """
        self.expert, self.engine, self.checkpointer = expert, engine, checkpointer
        self.config = expert.config
        self.monitor = HealthMonitor(self.config.health, self.config.warmup)
        self.history: list[Metrics] = []
        self.first = 0
        if start is not None:
            self.first, self.history = start.step, list(start.history)
            engine.restore(start.moments, start.step)
            for metrics in self.history:
                self.monitor.observe(int(metrics["step"]), metrics)

    def run(self, observe: Observer | None = None) -> TrainingResult:
        """Train to the configured number of steps.

        Raises:
            TrainingHealthError: A metric is not finite, or no gradient reaches the LoRA.
        """
        for step in range(self.first, self.config.steps):
            metrics = self._step(step)
            self.history.append(metrics)
            for alarm in self.monitor.observe(step, metrics):
                logger.warning("%s, step %d: %s: %s", self.expert.category, step, alarm.kind, alarm.message)
            if (step + 1) % self.config.checkpoint_every == 0 or step + 1 == self.config.steps:
                self._save(step + 1)
            if observe is not None:
                observe(step, metrics)
        return TrainingResult(self.history, self.monitor.alarms, self.first)

    def _step(self, step: int) -> Metrics:
        """Do one update; return its metrics, averaged over parts and workers."""
        totals: dict[str, Tensor] = {}
        for number in range(self.config.accumulation):
            value = self.engine.forward(step, self.engine.rank + number * self.engine.workers)
            self.engine.backward(value.loss)
            for name, metric in value.metrics.items():
                totals[name] = totals.get(name, torch.zeros_like(metric)) + metric / self.config.accumulation
        rate = learning_rate_at(step, self.config)
        norm = self.engine.update(rate)
        metrics = {
            "step": float(step),
            "workers": float(self.engine.workers),
            "learning_rate": rate,
            "gradient_norm": norm,
            **self._averaged(totals),
        }
        if (step + 1) % self.config.validate_every == 0 or step + 1 == self.config.steps:
            # Every worker validates on the same rows, so there is nothing to average.
            metrics |= {name: float(value) for name, value in self.expert.validate().items()}
        return metrics

    def _averaged(self, totals: Mapping[str, Tensor]) -> Metrics:
        values = self.engine.average(torch.stack(list(totals.values())))
        return dict(zip(totals, values.tolist(), strict=True))

    def _save(self, step: int) -> None:
        moments = self.engine.moments()
        if self.checkpointer is None or self.engine.rank != 0:
            return
        adapter = {name: p.detach().float().cpu().clone() for name, p in self.expert.parameters_by_name().items()}
        self.checkpointer.save(Checkpoint(step, adapter, moments, self.history))
