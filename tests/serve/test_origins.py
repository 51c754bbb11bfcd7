"""Web pages of other origins: none by default, those that the settings name, with and without keys."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import ValidationError
from starlette.types import Receive, Scope, Send

from serve.access import Access
from serve.admission import LoadSheddingMiddleware
from serve.api import make_api
from serve.endpoint_config import EndpointConfig
from serve.errors import timed_out
from serve.keys import KeyRing, new_key
from serve.request_log import Observers
from tests.support.echo_endpoint import CONFIG, PATH, Ask, EchoBackend, Records, caller

PAGE = "https://page.example"
PREFLIGHT = {
    "origin": PAGE,
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type,x-stainless-lang",
}


def asking(tmp_path: Path, *origins: str, keys: bool = False) -> tuple[Ask, str]:
    """Return a client of an endpoint for pages of these origins, and its key."""
    file = tmp_path / "keys.yaml"
    key = new_key(file, "alice", None, None)
    config = CONFIG.model_copy(update={"allowed_origins": origins})
    return caller(config, EchoBackend(), Access(KeyRing(file) if keys else None), Records()), key


@pytest.mark.parametrize("keys", [False, True])
@pytest.mark.parametrize("path", [PATH, "/v1/models", "/v1/models/aligned"])
def test_a_named_origins_preflight_is_answered_without_a_key(tmp_path: Path, keys: bool, path: str) -> None:
    ask, _ = asking(tmp_path, PAGE, keys=keys)
    answer = ask("OPTIONS", path, headers=PREFLIGHT)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert "POST" in answer.headers["access-control-allow-methods"]
    assert "x-stainless-lang" in answer.headers["access-control-allow-headers"]
    other = ask("OPTIONS", path, headers={**PREFLIGHT, "origin": "https://other.example"})
    assert other.status_code == 400
    assert "access-control-allow-origin" not in other.headers


def test_every_answer_can_be_read_by_a_named_origin_alone(tmp_path: Path) -> None:
    ask, key = asking(tmp_path, PAGE, keys=True)
    for headers, body, status in (
        ({"authorization": f"Bearer {key}"}, {"prompt": "x"}, 200),
        ({"authorization": f"Bearer {key}"}, {"prompt": 3}, 400),
        ({}, {"prompt": "x"}, 401),
    ):
        for origin, allowed in ((PAGE, PAGE), ("https://other.example", None)):
            answer = ask(json=body, headers={**headers, "origin": origin})
            assert answer.status_code == status
            assert answer.headers.get("access-control-allow-origin") == allowed
            assert "access-control-allow-credentials" not in answer.headers


@pytest.mark.parametrize("keys", [False, True])
def test_no_origin_is_allowed_by_default(tmp_path: Path, keys: bool) -> None:
    ask, key = asking(tmp_path, keys=keys)
    assert EndpointConfig().allowed_origins == ()
    preflight = ask("OPTIONS", PATH, headers=PREFLIGHT)
    assert preflight.status_code == 405
    answer = ask(json={"prompt": "x"}, headers={"origin": PAGE, "authorization": f"Bearer {key}"})
    for found in (preflight, answer):
        assert not [name for name in found.headers if name.startswith("access-control")]


@pytest.mark.parametrize("origin", ["*", "http://localhost:3000", "https://a.example", "http://[::1]:8080"])
def test_an_origin_is_a_scheme_a_host_and_perhaps_a_port(origin: str) -> None:
    assert EndpointConfig(allowed_origins=(origin,)).allowed_origins == (origin,)


@pytest.mark.parametrize("origin", ["", "null", "page.example", "https://a.example/", "https://*.example", "ftp://a"])
def test_what_is_no_origin_is_refused(origin: str) -> None:
    with pytest.raises(ValidationError):
        EndpointConfig(allowed_origins=(origin,))


def test_a_page_can_read_a_rejection_that_never_reached_the_gateway() -> None:
    config = CONFIG.model_copy(update={"allowed_origins": (PAGE,), "batch_size": 1, "max_queued_requests": 1})
    backend, records = EchoBackend(), Records()
    backend.delay = 0.3
    api = make_api(config, backend, Access(None), Observers([]))

    async def crowd() -> list[httpx.Response]:
        transport = httpx.ASGITransport(LoadSheddingMiddleware(api, records))
        async with httpx.AsyncClient(transport=transport, base_url="http://test", headers={"origin": PAGE}) as client:
            posts = [client.post(PATH, json={"prompt": "x"}) for _ in range(6)]
            first = await posts.pop()
            return [first, *await asyncio.gather(*posts)]

    answers = asyncio.run(crowd())
    assert sorted({answer.status_code for answer in answers}) == [200, 429]
    assert records.seen, "the middleware rejected some"
    assert {answer.headers["access-control-allow-origin"] for answer in answers} == {PAGE}


@pytest.mark.parametrize("status", [408, 504])
def test_a_time_out_of_serves_own_proxy_is_not_worth_a_retry(status: int) -> None:
    async def proxy(_: Scope, __: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b"Request timed out"})

    async def ask(app: Any) -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            return await client.post(PATH, json={"prompt": "x"})

    answer = asyncio.run(ask(LoadSheddingMiddleware(proxy, Records())))
    own = timed_out(1.0).failure.response()
    assert answer.headers["x-should-retry"] == own.headers["x-should-retry"] == "false"
