"""Load from many clients that each send a request, wait for the answer and send the next; with its figures.

It uses aiohttp, whose client costs a fraction of httpx's time: on the endpoint's own machine the clients must not
dominate the measurement.
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
    """One request as its client saw it, begun at ``time.monotonic()``; status 0: there was no answer."""

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
    """Send one request per number, ``clients`` at a time; a rejected client waits as Retry-After asks."""
    seen: list[Seen] = []
    numbers = iter(requests)

    async def one(client: aiohttp.ClientSession) -> None:
        for number in numbers:
            answer = await ask(client, url + PATH, body(number), headers)
            seen.append(answer)
            if answer.retry_after is not None and answer.status in (429, 503):
                await asyncio.sleep(float(answer.retry_after))

    async def alone() -> None:
        # Its own connection, as with separate clients: in one pool they would wait for each other, unfairly.
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=HANG_S)) as client:
            await one(client)

    await asyncio.gather(*(alone() for _ in range(clients)))
    return seen


async def ask(client: aiohttp.ClientSession, url: str, body: dict[str, Any], headers: dict[str, str] | None) -> Seen:
    """Send one request."""
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
    """Return the longest time of an accepted image by the queue's sizes: all images before it, batch by batch."""
    return math.ceil(endpoint.max_requests / endpoint.batch_size + 1) * (batch_s + endpoint.batch_wait_s)


def p(values: Sequence[float], percent: float) -> float:
    """Return a percentile of the values; 0 without values."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))] if ordered else 0.0


def figures(seen: Sequence[Seen], seconds: float) -> dict[str, Any]:
    """Return the numbers of accepted, rejected and hung requests, and their latencies."""
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
