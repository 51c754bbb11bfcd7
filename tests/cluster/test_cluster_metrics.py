"""Metrics declared as values, read back from the endpoint that Prometheus reads."""

from __future__ import annotations

import secrets
import time

import pytest
import ray

from cluster import metrics
from cluster.metrics import Counter, Gauge, Histogram
from tests.support.prometheus import exported, wait_for

ROWS = Counter("test_rows_total", "Rows", ("run", "outcome"))
LOSS = Gauge("test_loss", "Loss", ("run",))
SECONDS = Histogram("test_seconds", "Seconds", ("run",), (1.0, 10.0))


@pytest.mark.ray
@pytest.mark.slow
def test_metrics_of_two_processes_are_exported_and_a_gauge_stays(ray_cluster: None) -> None:
    run = f"metrics-{secrets.token_hex(3)}"

    @ray.remote(num_cpus=0)
    def work() -> None:
        ROWS.add(2, run=run, outcome="kept")

    ROWS.add(3, run=run, outcome="kept")
    ROWS.add(0, run=run, outcome="same-image")
    ROWS.add(run=run, outcome="context-lost")
    LOSS.set(0.75, run=run)
    LOSS.set(0.5, run=run)
    for value in (0.5, 0.7, 3.0, 99.0):
        SECONDS.observe(value, run=run)
    ray.get(work.remote())
    started = time.monotonic()
    expected = {("kept",): 5.0, ("context-lost",): 1.0}
    assert wait_for(f"ray_{ROWS.name}", ("outcome",), run, lambda found: found == expected) == expected
    assert ROWS.exported == "ray_test_rows_total"
    buckets = {("1.0",): 2.0, ("10.0",): 3.0, ("+Inf",): 4.0}
    assert wait_for("ray_test_seconds_bucket", ("le",), run, lambda found: found == buckets) == buckets
    assert wait_for("ray_test_loss", (), run, bool) == {(): 0.5}
    # Ray alone would forget by now a level that was set once.
    time.sleep(max(0.0, started + 35.0 - time.monotonic()))
    assert exported("ray_test_loss", (), run) == {(): 0.5}


def test_without_ray_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics.ray, "is_initialized", lambda: False)
    ROWS.add(run="x", outcome="kept")
    LOSS.set(1.0, run="x")
    SECONDS.observe(1.0, run="x")
