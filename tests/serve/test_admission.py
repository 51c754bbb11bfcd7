"""Load shedding: rejects by the number of requests in flight, learns from the gateway, forwards unverified callers."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.types import Receive, Scope, Send

from cluster.session import PROXY_CALLBACK, ClusterConfig, worker_environment
from serve.admission import (
    CAPACITY_HEADER,
    MAX_KNOWN_CALLERS,
    MIDDLEWARES,
    Capacity,
    LoadSheddingMiddleware,
    parse_capacity,
)
from serve.request_log import RequestRecord

pytestmark = pytest.mark.timeout(60)
PATH = "/v1/images/generations"
OLD, NEW = "Bearer old", "Bearer new"


class Gateway:
    """The application behind the middleware: holds requests until they are released, and reports its capacity."""

    def __init__(self) -> None:
        self.capacity: str | None = Capacity(2, 3).header()
        self.unverified: set[str] = set()
        self.asked: list[str] = []
        self.held: asyncio.Event | None = None
        self.error: Exception | None = None

    async def __call__(self, scope: Scope, _: Receive, send: Send) -> None:
        caller = dict(scope["headers"]).get(b"authorization", b"").decode()
        self.asked.append(caller)
        if self.held is not None and caller not in self.unverified:
            await self.held.wait()
        if self.error is not None:
            raise self.error
        known = caller not in self.unverified and self.capacity is not None
        headers = [(CAPACITY_HEADER.encode(), (self.capacity or "").encode())] if known else []
        status = 401 if caller in self.unverified else 200
        await send({"type": "http.response.start", "status": status, "headers": [*headers, (b"x-other", b"1")]})
        await send({"type": "http.response.body", "body": b"{}"})


class Records:
    """Keeps what it hears."""

    def __init__(self) -> None:
        self.records: list[RequestRecord] = []

    def observe(self, record: RequestRecord) -> None:
        self.records.append(record)


class Clients:
    """Clients, the middleware, and the gateway behind it."""

    def __init__(self) -> None:
        self.gateway, self.observer = Gateway(), Records()
        self.middleware = LoadSheddingMiddleware(self.gateway, self.observer)
        self._client = httpx.AsyncClient(
            transport=httpx.ASGITransport(app=self.middleware), base_url="http://middleware"
        )
        self.in_flight: list[asyncio.Task[httpx.Response]] = []

    async def ask(self, caller: str = OLD, path: str = PATH, method: str = "POST", **headers: str) -> httpx.Response:
        return await self._client.request(method, path, headers={"authorization": caller, **headers}, content=b"{}")

    async def enter(self, caller: str = OLD, path: str = PATH) -> asyncio.Task[httpx.Response]:
        """Send a request that the gateway holds, if it gets there."""
        if self.gateway.held is None:
            self.gateway.held = asyncio.Event()
        self.in_flight.append(asyncio.create_task(self.ask(caller, path)))
        for _ in range(20):
            await asyncio.sleep(0)
        return self.in_flight[-1]

    async def clear(self) -> list[int]:
        """Release all held requests, and return their statuses."""
        assert self.gateway.held is not None
        self.gateway.held.set()
        found = await asyncio.gather(*self.in_flight, return_exceptions=True)
        self.in_flight, self.gateway.held = [], None
        return [answer.status_code for answer in found if isinstance(answer, httpx.Response)]


def run(body: Callable[[Clients], Awaitable[None]]) -> None:
    async def main() -> None:
        clients = Clients()
        try:
            await body(clients)
        finally:
            for task in clients.in_flight:
                task.cancel()
            await asyncio.gather(*clients.in_flight, return_exceptions=True)

    asyncio.run(main())


def test_rejects_one_over_the_capacity_and_only_while_the_others_are_in_flight() -> None:
    async def body(clients: Clients) -> None:
        await clients.ask()
        await clients.enter()
        await clients.enter()
        refused = await clients.ask()
        assert refused.status_code == 429
        error = refused.json()["error"]
        assert (error["code"], error["type"], error["param"]) == ("queue_full", "rate_limit_error", None)
        assert 3 <= int(refused.headers["retry-after"]) <= 9
        assert len(clients.gateway.asked) == 3, "a rejected request does not reach the gateway"
        assert await clients.clear() == [200, 200]
        assert (await clients.ask()).status_code == 200

    run(body)


def test_forwards_every_request_until_it_knows_a_capacity() -> None:
    async def body(clients: Clients) -> None:
        clients.gateway.capacity = None
        await clients.ask()
        for _ in range(5):
            await clients.enter()
        assert await clients.clear() == [200] * 5

    run(body)


@pytest.mark.parametrize("header", ["", "2", "2;", "-1;2", "2;3;4", "a;b", "9999999999;1", "٢;٣"])
def test_a_malformed_capacity_is_ignored(header: str) -> None:
    assert parse_capacity(header) is None


@given(st.integers(0, 10**9 - 1), st.integers(0, 10**9 - 1))
def test_a_capacity_is_read_as_it_was_written(max_requests: int, retry_after_s: int) -> None:
    assert parse_capacity(Capacity(max_requests, retry_after_s).header()) == Capacity(max_requests, retry_after_s)


def test_the_capacity_header_does_not_reach_the_client() -> None:
    async def body(clients: Clients) -> None:
        for _ in range(2):
            answer = await clients.ask()
            assert CAPACITY_HEADER not in answer.headers
            assert answer.headers["x-other"] == "1"

    run(body)


def test_an_unverified_caller_is_forwarded_and_uses_no_capacity() -> None:
    async def body(clients: Clients) -> None:
        await clients.ask()
        await clients.enter()
        await clients.enter()
        clients.gateway.unverified = {NEW}
        assert (await clients.ask(NEW)).status_code == 401, "full or not, an unverified caller gets 401"
        clients.gateway.unverified = set()
        await clients.clear()

        clients.gateway.unverified = {NEW}
        await asyncio.gather(*(clients.ask(NEW) for _ in range(5)))
        await clients.enter()
        assert not (await clients.enter()).done(), "five unverified callers use none of the capacity of two"

    run(body)


def test_a_caller_that_gets_401_is_unverified_again() -> None:
    async def body(clients: Clients) -> None:
        await clients.ask(NEW)
        clients.gateway.unverified = {NEW}
        assert (await clients.ask(NEW)).status_code == 401
        await clients.ask(OLD)
        await clients.enter(OLD)
        await clients.enter(OLD)
        assert (await clients.ask(OLD)).status_code == 429
        assert (await clients.ask(NEW)).status_code == 401

    run(body)


def test_a_request_that_hangs_up_or_fails_frees_its_capacity() -> None:
    async def body(clients: Clients) -> None:
        await clients.ask()
        for _ in range(3):
            task = await clients.enter()
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        clients.gateway.held, clients.gateway.error = None, RuntimeError("no answer")
        for _ in range(3):
            with pytest.raises(RuntimeError):
                await clients.ask()
        clients.gateway.error = None
        assert (await clients.ask()).status_code == 200

    run(body)


def test_a_redeployed_endpoint_has_another_capacity() -> None:
    async def body(clients: Clients) -> None:
        await clients.ask()
        clients.gateway.capacity = Capacity(4, 1).header()
        await clients.ask()
        for _ in range(4):
            await clients.enter()
        assert (await clients.ask()).headers["retry-after"] in {"1", "2", "3"}

    run(body)


def test_requests_to_other_paths_and_methods_are_forwarded() -> None:
    async def body(clients: Clients) -> None:
        await clients.ask()
        clients.gateway.unverified = {NEW}
        await clients.enter()
        await clients.enter()
        clients.gateway.held = None
        assert (await clients.ask(method="GET")).status_code == 200
        assert (await clients.ask(path="/other")).status_code == 200

    run(body)


def test_observes_each_rejection_and_nothing_else() -> None:
    async def body(clients: Clients) -> None:
        await clients.ask()
        await clients.enter()
        await clients.enter()
        mine = await clients.ask(**{"x-request-id": "my-own-id-1"})
        other = await clients.ask()
        await clients.clear()
        first, second = clients.observer.records
        assert mine.headers["x-request-id"] == first.request_id == "my-own-id-1"
        assert other.headers["x-request-id"] == second.request_id != ""
        assert (first.status, first.code, first.path) == (429, "queue_full", PATH)
        assert OLD not in repr(clients.observer.records)

    run(body)


def test_forgets_the_caller_seen_least_recently() -> None:
    async def body(clients: Clients) -> None:
        for number in range(MAX_KNOWN_CALLERS):
            await clients.ask(f"Bearer {number}")
        await clients.ask("Bearer 0")
        await clients.ask("Bearer another")
        await clients.enter("Bearer 0")
        await clients.enter("Bearer 0")
        assert (await clients.ask("Bearer 0")).status_code == 429
        clients.gateway.held = None
        assert (await clients.ask("Bearer 1")).status_code == 200, "it is unverified again"

    run(body)


Move = tuple[str, int]


@settings(deadline=None)  # its first example may be slow
@given(
    st.lists(st.one_of(st.tuples(st.just("enter"), st.integers(0, 2)), st.tuples(st.just("leave"), st.integers(0, 5))))
)
def test_as_many_are_in_flight_as_by_a_plain_count(moves: list[Move]) -> None:
    """Callers 0 and 1 of two endpoints and an unverified one, 2, come and go; 0 and 1 may have two in flight."""

    async def body(clients: Clients) -> None:
        callers = [(OLD, "/a"), (OLD, "/b"), (NEW, "/a")]
        await clients.ask(*callers[0])
        await clients.ask(*callers[1])
        in_flight: list[tuple[int, asyncio.Task[httpx.Response]]] = []
        for move, number in moves:
            if move == "enter":
                full = number < 2 and sum(caller == number for caller, _ in in_flight) >= 2
                task = await clients.enter(*callers[number])
                assert task.done() == full
                in_flight += [] if full else [(number, task)]
            elif number < len(in_flight):
                _, task = in_flight.pop(number)
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task

    run(body)


def test_a_local_clusters_environment_names_the_middleware() -> None:
    path = worker_environment(ClusterConfig(), MIDDLEWARES)[PROXY_CALLBACK]
    module, _, name = path.partition(":")
    [found] = getattr(importlib.import_module(module), name)()
    middleware: Any = found.cls(Gateway(), *found.args, **found.kwargs)
    assert isinstance(middleware, LoadSheddingMiddleware)
    # A joined cluster's nodes may not have this code, without which Serve's proxy would not start.
    assert PROXY_CALLBACK not in worker_environment(ClusterConfig(address="auto"), MIDDLEWARES)
    assert PROXY_CALLBACK not in worker_environment(ClusterConfig())
