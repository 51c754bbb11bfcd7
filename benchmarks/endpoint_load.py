"""A crowd of clients that each ask, wait for the answer, and ask again; what they saw, in figures.

By aiohttp, whose client costs a fraction of httpx's time: on the endpoint's own machine the crowd must not be what is
measured.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp

from serve.endpoint_config import EndpointConfig

PATH = "/v1/images/generations"
HANG_S = 60.0


@dataclass(frozen=True)
class Seen:
    """One request as its client saw it, begun at ``time.monotonic()``; status 0: no answer came."""

    status: int
    started: float
    seconds: float
    retry_after: str | None
    body: dict[str, Any] | None


async def crowd(
    url: str,
    clients: int,
    requests: Iterable[int],
    body: Callable[[int], dict[str, Any]],
    headers: dict[str, str] | None = None,
) -> list[Seen]:
    """Ask once for each number, ``clients`` at a time; who is refused waits for a while as Retry-After asks."""
    seen: list[Seen] = []
    numbers = iter(requests)

    async def one(client: aiohttp.ClientSession) -> None:
        for number in numbers:
            answer = await ask(client, url + PATH, body(number), headers)
            seen.append(answer)
            if answer.retry_after is not None and answer.status in (429, 503):
                await asyncio.sleep(float(answer.retry_after))

    async def alone() -> None:
        # A connection of its own, as apart clients have: in one pool they wait for each other, unfairly.
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=HANG_S)) as client:
            await one(client)

    await asyncio.gather(*(alone() for _ in range(clients)))
    return seen


async def ask(client: aiohttp.ClientSession, url: str, body: dict[str, Any], headers: dict[str, str] | None) -> Seen:
    """Ask once."""
    started = time.monotonic()
    try:
        async with client.post(url, json=body, headers=headers) as answer:
            content = await answer.read()
    except (aiohttp.ClientError, TimeoutError):
        return Seen(0, started, time.monotonic() - started, None, None)
    spent = time.monotonic() - started
    found = json.loads(content) if answer.content_type == "application/json" else None
    return Seen(answer.status, started, spent, answer.headers.get("retry-after"), found)


def bound_s(endpoint: EndpointConfig, batch_s: float) -> float:
    """Return the longest that an accepted image may take by the queue's own sizes: all before it, batch by batch."""
    return math.ceil(endpoint.max_requests / endpoint.batch_size + 1) * (batch_s + endpoint.batch_wait_s)


def p(values: Sequence[float], percent: float) -> float:
    """Return a percentile, the value at or above which few lie; 0 where there is none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))] if ordered else 0.0


def figures(seen: Sequence[Seen], seconds: float) -> dict[str, Any]:
    """Return how many were accepted and refused, how fast, and how many hung."""
    accepted = [s.seconds for s in seen if s.status == 200]
    refused = [s for s in seen if s.status == 429]
    return {
        "requests": len(seen),
        "statuses": {str(status): count for status, count in sorted(Counter(s.status for s in seen).items())},
        "accepted_a_second": len(accepted) / seconds,
        "accepted_p50_s": p(accepted, 50),
        "accepted_p99_s": p(accepted, 99),
        "refused_p99_s": p([s.seconds for s in refused], 99),
        "refused_without_retry_after": sum(s.retry_after is None for s in refused),
        "hung": sum(s.status == 0 for s in seen),
    }
