"""Thousands of wrong requests, by schema and by hand, through Serve's own proxy: no 5xx, no long reply, no echo."""

from __future__ import annotations

import json
import random
import socket
import string
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings

from serve.access import Access
from serve.api import make_api
from serve.endpoint_config import EndpointConfig
from tests.faults.endpoint_stub import stub_endpoint
from tests.faults.figures import Figures

pytestmark = [pytest.mark.ray, pytest.mark.serve]
PATH = "/v1/images/generations"
MARK = "zqxECHO"
REDUCED, FULL = 200, 2000
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def url(ray_cluster: None) -> Iterator[str]:
    with stub_endpoint(max_queued_requests=64) as (found, _):
        yield found


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    with httpx.Client(timeout=60, trust_env=False) as found:
        yield found


def hand_made(draw: random.Random) -> bytes:
    """Return a body that some program or person might send in error or in malice."""
    text = "".join(draw.choices(string.printable, k=draw.randint(0, 60)))
    fields: dict[str, Any] = {
        "prompt": draw.choice([MARK, text, "", None, 7, [], {}, "\u0000", "\U0001f52a" * 300, MARK * 200]),
        "n": draw.choice([1, 0, -1, 10**9, 10**40, 1.5, "1", None, True, [1], float("nan"), float("inf")]),
        "size": draw.choice([None, "64x64", "1x1", "99999x99999", "0x0", "64X64", "-64x64", text, MARK, 64, "64x64 "]),
        "seed": draw.choice([None, 0, -1, 2**63 - 1, 2**63, 2**200, 0.5, "0", MARK, float("nan")]),
        "steps": draw.choice([None, 1, 0, 10**9, -5, 1e308, "x"]),
        "guidance": draw.choice([None, 0, -0.0, 1e308, float("nan"), float("-inf"), "3", [[]]]),
        "model": draw.choice([None, "aligned", "base", MARK, "../" * 20, "", "x" * 5000]),
        "response_format": draw.choice([None, "b64_json", "url", MARK, 1]),
        "user": draw.choice([None, text, MARK * 100, 3]),
        MARK: 1,
    }
    chosen = draw.sample(list(fields), draw.choice([0, 1, 1, 2, 3, len(fields)]))
    good = {"prompt": "a house", "seed": 1}
    whole = json.dumps({**good, **{name: fields[name] for name in chosen}}).encode()
    return draw.choice(
        [
            whole,
            whole,
            whole,
            whole[: draw.randint(0, len(whole))],
            bytes(draw.randbytes(draw.randint(0, 300))),
            b'{"prompt": "' + draw.randbytes(8) + b'"}',
            b"[" * draw.choice([10, 1000, 60_000]),
            b'{"prompt":' * draw.choice([10, 1000, 6000]),
            b'{"prompt": "\\ud800"}',
            b'{"prompt": "' + b"A" * draw.choice([65_000, 70_000, 5_000_000]) + b'"}',
            b"\xef\xbb\xbf" + whole,
            whole.decode().encode("utf-16"),
            b"null",
            b'{"prompt": "x", "seed": ' + b"9" * draw.randint(1, 5000) + b"}",
        ]
    )


def check(answer: httpx.Response, body: bytes) -> None:
    """Check what holds for every answer to a request for images."""
    assert answer.status_code < 500, (answer.status_code, answer.text[:300], body[:300])
    if answer.status_code == 200:
        return
    assert len(answer.content) < 2048
    assert set(answer.json()) == {"error"}
    assert MARK not in answer.text
    if len(body) > 65536:
        assert answer.status_code == 413


def summary(statuses: Counter[int]) -> str:
    """Return how the requests ended, in words."""
    counts = ", ".join(f"{count} x {status}" for status, count in sorted(statuses.items()))
    return f"{sum(statuses.values())} requests: {counts}; no 5xx, 413 above 64 KB, refusals under 2 KB"


@pytest.mark.timeout(1200)
def test_hand_made_bodies(url: str, client: httpx.Client, times: Callable[[int, int], int], figures: Figures) -> None:
    draw = random.Random(7)
    count = times(FULL, REDUCED) // 2
    statuses: Counter[int] = Counter()
    for _ in range(count):
        body = hand_made(draw)
        answer = client.post(url + PATH, content=body, headers=JSON)
        check(answer, body)
        statuses[answer.status_code] += 1
    assert statuses.keys() >= {200, 400, 413}, statuses
    assert client.post(url + PATH, json={"prompt": "a house"}).status_code == 200
    figures.note("endpoint: requests fuzzed by hand", summary(statuses))


@pytest.mark.timeout(1200)
def test_bodies_from_the_schema(
    url: str, client: httpx.Client, times: Callable[[int, int], int], figures: Figures
) -> None:
    """Schemathesis reads the application's own schema, and sends what fits it and what just does not."""
    api = make_api(EndpointConfig(), backend=None, access=Access(None), observer=None)  # type: ignore[arg-type]
    schema = schemathesis.openapi.from_asgi("/openapi.json", api)
    operation = schema[PATH]["POST"]
    count = times(FULL, REDUCED) // 4
    statuses: Counter[int] = Counter()

    def fuzz(mode: schemathesis.GenerationMode) -> None:
        @settings(
            max_examples=count,
            deadline=None,
            database=None,
            derandomize=True,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def send(case: schemathesis.Case) -> None:
            sent = case.as_transport_kwargs(base_url=url)
            request = httpx.Request(
                sent["method"],
                sent["url"],
                headers={k: v for k, v in sent["headers"].items() if k.lower() != "content-length"},
                **{k: sent[k] for k in ("json", "params") if k in sent},
                content=sent.get("data"),
            )
            answer = client.send(request)
            if request.method == "POST" and request.url.path == PATH:
                check(answer, request.read())
            assert answer.status_code < 500
            statuses[answer.status_code] += 1

        send()

    fuzz(schemathesis.GenerationMode.POSITIVE)
    fuzz(schemathesis.GenerationMode.NEGATIVE)
    assert sum(statuses.values()) >= count
    assert 400 in statuses
    assert client.get(url + "/healthz").status_code == 200
    figures.note("endpoint: requests fuzzed from its schema", summary(statuses))


@pytest.mark.parametrize(
    ("headers", "content"),
    [
        ({"content-type": "text/plain"}, b'{"prompt": "x"}'),
        ({}, b'{"prompt": "x"}'),
        ({**JSON, "content-encoding": "gzip"}, b'{"prompt": "x"}'),
        ({**JSON, "authorization": "Bearer " + "x" * 3000}, b'{"prompt": "x"}'),
        ({**JSON, "x-request-id": "'; drop table"}, b'{"prompt": "x"}'),
    ],
)
def test_odd_headers(url: str, headers: dict[str, str], content: bytes) -> None:
    answer = httpx.post(url + PATH, content=content, headers=headers, timeout=20, trust_env=False)
    assert answer.status_code < 500


@pytest.mark.parametrize("length", ["70000", "99999999999999999999"])
def test_a_body_that_is_announced_too_long_is_refused_before_it_comes(url: str, length: str) -> None:
    address = httpx.URL(url)
    with socket.create_connection((address.host, address.port or 80), timeout=20) as connection:
        head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
        connection.sendall(head.encode())
        assert connection.recv(4096).startswith((b"HTTP/1.1 413", b"HTTP/1.1 400"))
