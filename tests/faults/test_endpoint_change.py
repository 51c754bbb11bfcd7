"""Under load: a renderer is killed, and the endpoint is deployed anew with other settings."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections import Counter
from typing import Any

import httpx
import pytest
import ray

from benchmarks.endpoint_load import Seen, crowd
from cluster.deployment import deploy
from cluster.endpoint import EndpointConfig
from tests.faults.endpoint_stub import BUILDER, stub_endpoint

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]
CLIENTS = 8


class Load:
    """A crowd in a thread of its own."""

    def __init__(self, url: str, requests: int) -> None:
        self.seen: list[Seen] = []
        self._thread = threading.Thread(target=self._run, args=(url, requests))
        self._thread.start()

    def _run(self, url: str, requests: int) -> None:
        self.seen = asyncio.run(crowd(url, CLIENTS, requests, lambda i: {"prompt": "x", "seed": i}))

    def running(self) -> bool:
        return self._thread.is_alive()

    def result(self) -> list[Seen]:
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


def test_only_what_a_killed_renderer_was_at_fails(ray_cluster: None) -> None:
    with stub_endpoint(batch_size=4, replicas=2, max_queued_requests=32) as (url, _):
        before = renderers()
        assert len(before) == 2
        load = Load(url, 300)
        time.sleep(4)
        killed_at = time.monotonic()
        os.kill(before[0], signal.SIGKILL)
        seen = load.result()
        failed = [s for s in seen if s.status != 200]
        assert 0 < len(failed) <= CLIENTS
        assert {s.status for s in failed} == {503}
        for answer in failed:
            assert answer.started < killed_at < answer.started + answer.seconds, "it was in flight"
            assert answer.body is not None
            assert answer.body["error"]["code"] == "unavailable"
            assert answer.retry_after == "1"
        deadline = time.monotonic() + 60
        while len(renderers()) < 2 and time.monotonic() < deadline:
            time.sleep(0.5)
        assert len(renderers()) == 2, "another one takes its place"


def test_nothing_fails_while_the_endpoint_is_deployed_anew(ray_cluster: None) -> None:
    with stub_endpoint(batch_size=4, max_queued_requests=32) as (url, endpoint):
        [before] = renderers()
        load = Load(url, 900)
        time.sleep(2)
        document: dict[str, Any] = {"serve": {**endpoint.model_dump(mode="json"), "max_images": 2}}
        deploy(BUILDER, document, EndpointConfig.model_validate(document["serve"]))
        assert load.running(), "the load lasts over the whole redeploy"
        deadline = time.monotonic() + 60
        while before in renderers() and time.monotonic() < deadline:
            time.sleep(0.5)
        seen = load.result()
        assert Counter(s.status for s in seen) == {200: 900}
        assert before not in renderers(), "the old renderer is gone"
        refused = httpx.post(f"{url}/v1/images/generations", json={"prompt": "x", "n": 3}, timeout=30, trust_env=False)
        assert refused.json()["error"]["param"] == "n", "the new settings hold"
