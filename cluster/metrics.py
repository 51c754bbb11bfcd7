"""Metrics on Ray: declared as values, created once per process, exported by each node's agent for Prometheus.

The agent exports each name with the prefix ``ray_``. A process sends its values every ten seconds and at an orderly
end, so a killed process loses its last ones.
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
    """A metric's name, its description, and the tags that each of its values carries."""

    name: str
    description: str
    tags: tuple[str, ...]

    @property
    def exported(self) -> str:
        """Return the name in Prometheus."""
        return f"ray_{self.name}"


@dataclass(frozen=True)
class Counter(Metric):
    """A count that only grows, such as finished rows. Its name ends in ``_total``."""

    def add(self, amount: float = 1.0, **tags: str) -> None:
        """Add ``amount``; no effect without Ray in this process, or when ``amount`` is 0."""
        if ray.is_initialized() and amount > 0:
            _counter(self).inc(amount, tags)


@dataclass(frozen=True)
class Gauge(Metric):
    """A value that goes up and down, such as a loss. Ray keeps exporting it for about 20 s after its process ends."""

    def set(self, value: float, **tags: str) -> None:
        """Set the value; no effect without Ray in this process."""
        if ray.is_initialized():
            _gauge(self).set(value, tags)
            _refresher().keep(self, value, tags)


@dataclass(frozen=True)
class Histogram(Metric):
    """A distribution of values, such as seconds, in buckets with the upper bounds ``bounds``."""

    bounds: tuple[float, ...]

    def observe(self, value: float, **tags: str) -> None:
        """Add a value; no effect without Ray in this process."""
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


class _GaugeRefresher:
    """Sets gauges again at intervals: Ray drops a gauge that is not set for two of its export intervals."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: dict[tuple[Gauge, tuple[tuple[str, str], ...]], float] = {}
        threading.Thread(target=self._run, daemon=True, name="metrics").start()

    def keep(self, gauge: Gauge, value: float, tags: dict[str, str]) -> None:
        with self._lock:
            self._values[gauge, tuple(sorted(tags.items()))] = value

    def _run(self) -> None:
        while True:
            time.sleep(REFRESH_S)
            with self._lock:
                if not ray.is_initialized():
                    self._values.clear()
                for (gauge, tags), value in self._values.items():
                    _gauge(gauge).set(value, dict(tags))


@cache
def _refresher() -> _GaugeRefresher:
    return _GaugeRefresher()
