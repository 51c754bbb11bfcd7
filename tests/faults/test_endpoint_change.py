"""Under load: a renderer is killed, and the endpoint is deployed anew with other settings."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import ray

from benchmarks.endpoint_load import Seen, crowd
from benchmarks.stub_endpoint import build_batches
from serve.deployment import deploy
from serve.endpoint_config import EndpointConfig
from tests.faults.endpoint_stub import stub_endpoint
from tests.faults.figures import Figures
from tests.faults.killing import wait_for

pytestmark = [pytest.mark.ray, pytest.mark.serve, pytest.mark.timeout(600)]
CLIENTS = 24
"""More than both renderers take in, so that neither is ever without work."""
LOAD_LIMIT_S = 200.0


class Load:
    """A crowd in a thread of its own, which goes on until its result is asked for."""

    def __init__(self, url: str) -> None:
        self.seen: list[Seen] = []
        self.started = 0
        """Requests that have been started."""
        self._enough = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(url,))
        self._thread.start()

    def _run(self, url: str) -> None:
        self.seen = asyncio.run(crowd(url, CLIENTS, self._numbers(), lambda i: {"prompt": "x", "seed": i}))

    def _numbers(self) -> Iterator[int]:
        deadline = time.monotonic() + LOAD_LIMIT_S
        while not self._enough.is_set() and time.monotonic() < deadline:
            self.started += 1
            yield self.started

    def await_rounds(self, count: int) -> None:
        """Wait until so many requests of each client have been started from now on, however slow the machine is."""
        goal = self.started + count * CLIENTS
        wait_for(lambda: self.started >= goal, "the load's next requests", 60)

    def result(self) -> list[Seen]:
        self._enough.set()
        self._thread.join(300)
        assert not self._thread.is_alive(), "a client hangs"
        return self.seen


def renderers() -> list[int]:
    """Return the process ids of the renderers, as Ray knows them."""
    from ray.util.state import list_actors

    # This session's cluster, whatever else runs on the machine.
    address = ray.get_runtime_context().gcs_address
    mine = [("state", "=", "ALIVE"), ("ray_namespace", "=", "serve")]
    alive = list_actors(address=address, filters=mine, limit=1000, detail=True)
    return [actor.pid for actor in alive if "renderer" in actor.name]


def test_only_what_a_killed_renderer_was_at_fails(ray_cluster: None, figures: Figures) -> None:
    with stub_endpoint(batch_size=4, replicas=2, max_queued_requests=32) as (url, endpoint):
        before = renderers()
        assert len(before) == 2
        load = Load(url)
        load.await_rounds(3)
        killed_at = time.monotonic()
        os.kill(before[0], signal.SIGKILL)
        wait_for(lambda: len(set(renderers()) - {before[0]}) == 2, "another renderer in its place", 60)
        seen = load.result()
        failed = [s for s in seen if s.status != 200]
        assert 0 < len(failed) <= endpoint.renderer_slots < CLIENTS
        assert {s.status for s in failed} == {503}
        for answer in failed:
            assert answer.started < killed_at < answer.started + answer.seconds, "it was in flight"
            assert answer.body is not None
            assert answer.body["error"]["code"] == "unavailable"
            assert answer.retry_after in ("1", "2", "3")
        assert max(s.started for s in seen) > killed_at + 1, "the load went on"
    figures.note(
        f"endpoint: one of two renderers killed under load from {CLIENTS} clients",
        f"{len(failed)} of {len(seen)} requests failed, each in flight at the kill; 503 with Retry-After",
    )


@pytest.mark.nightly
def test_nothing_fails_while_the_endpoint_is_deployed_anew(ray_cluster: None, figures: Figures) -> None:
    with stub_endpoint(batch_size=4, max_queued_requests=32) as (url, endpoint):
        [before] = renderers()
        load = Load(url)
        load.await_rounds(2)
        document: dict[str, Any] = {"serve": {**endpoint.model_dump(mode="json"), "max_images": 2}}
        deploy(build_batches(document), EndpointConfig.model_validate(document["serve"]))
        wait_for(lambda: before not in renderers(), "the old renderer's end", 60)
        gone_at = time.monotonic()
        load.await_rounds(1)
        seen = load.result()
        assert {s.status for s in seen} == {200}
        assert max(s.started for s in seen) > gone_at, "the load lasted over the whole redeploy"
        refused = httpx.post(f"{url}/v1/images/generations", json={"prompt": "x", "n": 3}, timeout=30, trust_env=False)
        assert refused.json()["error"]["param"] == "n", "the new settings hold"
    figures.note(f"endpoint: deployed anew under load from {CLIENTS} clients", f"0 of {len(seen)} requests failed")
