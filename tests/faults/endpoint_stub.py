"""Deploys the endpoint over the model that sleeps (``benchmarks/stub_endpoint.py``), on the session's Ray."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from benchmarks.stub_endpoint import build_batches
from serve.deployment import deploy
from serve.endpoint_config import EndpointConfig

REFUSAL_S = 0.25
"""The goal for the p99 of rejections, with clients and endpoint alone on the same two cores."""


def free_port() -> int:
    """Return a free port outside the ranges that the system, Ray and the S3 server take theirs from meanwhile."""
    while True:
        port = random.randint(21000, 29999)
        with socket.socket() as probe, suppress(OSError):
            # What is bound without listening is taken too; what a connection has just left is not.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return port


@contextmanager
def stub_endpoint(**settings: Any) -> Iterator[tuple[str, EndpointConfig]]:
    """Yield the URL and settings of an endpoint that takes 200 ms per batch; Serve is down before and after."""
    from ray import serve

    document = {"serve": {"port": free_port(), "num_cpus": 0.2, "retry_after_s": 1, **settings}}
    endpoint = EndpointConfig.model_validate(document["serve"])
    serve.shutdown()
    try:
        yield deploy(build_batches(document), endpoint), endpoint
    finally:
        serve.shutdown()
