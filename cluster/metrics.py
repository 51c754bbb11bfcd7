"""Metrics on Ray: declared once as values, made once a process, exported by each node's agent for Prometheus.

The agent writes a metric's name with ``ray_`` before it. It gets them every ten seconds and at an orderly end, so a
killed process loses what it did last.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from functools import cache
from typing import Any

import ray
from ray.util import metrics

REFRESH_S = 5.0


@dataclass(frozen=True)
class Metric:
    """A metric's name, what it says, and the tags that every value of it carries."""

    name: str
    description: str
    tags: tuple[str, ...]

    @property
    def exported(self) -> str:
        """Return the name that Prometheus sees."""
        return f"ray_{self.name}"


@dataclass(frozen=True)
class Counter(Metric):
    """What only grows, such as finished rows. Its name ends in ``_total``."""

    def add(self, amount: float = 1.0, **tags: str) -> None:
        """Add to it; nothing happens in a process without Ray, and 0 is nothing to add."""
        if ray.is_initialized() and amount > 0:
            _counter(self).inc(amount, tags)


@dataclass(frozen=True)
class Gauge(Metric):
    """What is now so and so high, such as a loss. It is told until some twenty seconds after its process has ended."""

    def set(self, value: float, **tags: str) -> None:
        """Set it; nothing happens in a process without Ray."""
        if ray.is_initialized():
            _gauge(self).set(value, tags)
            _keeper().keep(self, value, tags)


@dataclass(frozen=True)
class Histogram(Metric):
    """How values are spread, such as seconds: a histogram with these upper bounds of its buckets."""

    bounds: tuple[float, ...]

    def observe(self, value: float, **tags: str) -> None:
        """Count a value; nothing happens in a process without Ray."""
        if ray.is_initialized():
            _histogram(self).observe(value, tags)


@cache
def _counter(metric: Counter) -> Any:
    return metrics.Counter(metric.name, metric.description, metric.tags)


@cache
def _gauge(metric: Gauge) -> Any:
    return metrics.Gauge(metric.name, metric.description, metric.tags)


@cache
def _histogram(metric: Histogram) -> Any:
    return metrics.Histogram(metric.name, metric.description, list(metric.bounds), metric.tags)


class _Keeper:
    """Sets levels again and again: Ray forgets one that is not set for two of its intervals."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: dict[tuple[Gauge, tuple[tuple[str, str], ...]], float] = {}
        threading.Thread(target=self._run, daemon=True, name="metrics").start()

    def keep(self, level: Gauge, value: float, tags: dict[str, str]) -> None:
        with self._lock:
            self._values[level, tuple(sorted(tags.items()))] = value

    def _run(self) -> None:
        while True:
            time.sleep(REFRESH_S)
            with self._lock:
                if not ray.is_initialized():
                    self._values.clear()
                for (level, tags), value in self._values.items():
                    _gauge(level).set(value, dict(tags))


@cache
def _keeper() -> _Keeper:
    return _Keeper()
