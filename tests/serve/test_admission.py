"""The door: refuses by the number of guests inside, learns from the gateway, and leaves strangers to it."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest
from hypothesis import given
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
    """What stands behind the door: holds requests until it is told to go on, and tells some callers of its room."""

    def __init__(self) -> None:
        self.room: str | None = Capacity(2, 3).header()
        self.strangers: set[str] = set()
        self.asked: list[str] = []
        self.held: asyncio.Event | None = None
        self.error: Exception | None = None

    async def __call__(self, scope: Scope, _: Receive, send: Send) -> None:
        who = dict(scope["headers"]).get(b"authorization", b"").decode()
        self.asked.append(who)
        if self.held is not None and who not in self.strangers:
            await self.held.wait()
        if self.error is not None:
            raise self.error
        known = who not in self.strangers and self.room is not None
        headers = [(CAPACITY_HEADER.encode(), (self.room or "").encode())] if known else []
        status = 401 if who in self.strangers else 200
        await send({"type": "http.response.start", "status": status, "headers": [*headers, (b"x-other", b"1")]})
        await send({"type": "http.response.body", "body": b"{}"})


class Noted:
    """Keeps what it hears."""

    def __init__(self) -> None:
        self.records: list[RequestRecord] = []

    def observe(self, record: RequestRecord) -> None:
        self.records.append(record)


class Street:
    """Clients, the door, and what is behind it."""

    def __init__(self) -> None:
        self.gateway, self.noted = Gateway(), Noted()
        self.door = LoadSheddingMiddleware(self.gateway, self.noted)
        self._client = httpx.AsyncClient(transport=httpx.ASGITransport(app=self.door), base_url="http://door")
        self.inside: list[asyncio.Task[httpx.Response]] = []

    async def ask(self, who: str = OLD, path: str = PATH, method: str = "POST", **headers: str) -> httpx.Response:
        return await self._client.request(method, path, headers={"authorization": who, **headers}, content=b"{}")

    async def enter(self, who: str = OLD, path: str = PATH) -> asyncio.Task[httpx.Response]:
        """Send a request that is held inside, if it gets there."""
        if self.gateway.held is None:
            self.gateway.held = asyncio.Event()
        self.inside.append(asyncio.create_task(self.ask(who, path)))
        for _ in range(20):
            await asyncio.sleep(0)
        return self.inside[-1]

    async def clear(self) -> list[int]:
        """Have everybody answered, and return the statuses."""
        assert self.gateway.held is not None
        self.gateway.held.set()
        found = await asyncio.gather(*self.inside, return_exceptions=True)
        self.inside, self.gateway.held = [], None
        return [answer.status_code for answer in found if isinstance(answer, httpx.Response)]


def run(body: Callable[[Street], Awaitable[None]]) -> None:
    async def main() -> None:
        street = Street()
        try:
            await body(street)
        finally:
            for task in street.inside:
                task.cancel()
            await asyncio.gather(*street.inside, return_exceptions=True)

    asyncio.run(main())


def test_refuses_one_more_than_there_is_room_for_and_only_while_they_are_inside() -> None:
    async def body(street: Street) -> None:
        await street.ask()
        await street.enter()
        await street.enter()
        refused = await street.ask()
        assert refused.status_code == 429
        error = refused.json()["error"]
        assert (error["code"], error["type"], error["param"]) == ("queue_full", "rate_limit_error", None)
        assert 3 <= int(refused.headers["retry-after"]) <= 9
        assert len(street.gateway.asked) == 3, "who is refused does not come in"
        assert await street.clear() == [200, 200]
        assert (await street.ask()).status_code == 200

    run(body)


def test_lets_everybody_in_until_it_is_told_of_a_room() -> None:
    async def body(street: Street) -> None:
        street.gateway.room = None
        await street.ask()
        for _ in range(5):
            await street.enter()
        assert await street.clear() == [200] * 5

    run(body)


@pytest.mark.parametrize("header", ["", "2", "2;", "-1;2", "2;3;4", "a;b", "9999999999;1", "٢;٣"])
def test_what_is_no_room_tells_nothing(header: str) -> None:
    assert parse_capacity(header) is None


@given(st.integers(0, 10**9 - 1), st.integers(0, 10**9 - 1))
def test_a_room_is_read_as_it_was_told(max_requests: int, retry_after_s: int) -> None:
    assert parse_capacity(Capacity(max_requests, retry_after_s).header()) == Capacity(max_requests, retry_after_s)


def test_the_gateways_word_stays_inside() -> None:
    async def body(street: Street) -> None:
        for _ in range(2):
            answer = await street.ask()
            assert CAPACITY_HEADER not in answer.headers
            assert answer.headers["x-other"] == "1"

    run(body)


def test_a_stranger_is_left_to_the_gateway_and_takes_no_place() -> None:
    async def body(street: Street) -> None:
        await street.ask()
        await street.enter()
        await street.enter()
        street.gateway.strangers = {NEW}
        assert (await street.ask(NEW)).status_code == 401, "full or not, a stranger is told so"
        street.gateway.strangers = set()
        await street.clear()

        street.gateway.strangers = {NEW}
        await asyncio.gather(*(street.ask(NEW) for _ in range(5)))
        await street.enter()
        assert not (await street.enter()).done(), "five strangers hold none of the two places"

    run(body)


def test_who_is_no_longer_let_in_is_a_stranger_again() -> None:
    async def body(street: Street) -> None:
        await street.ask(NEW)
        street.gateway.strangers = {NEW}
        assert (await street.ask(NEW)).status_code == 401
        await street.ask(OLD)
        await street.enter(OLD)
        await street.enter(OLD)
        assert (await street.ask(OLD)).status_code == 429
        assert (await street.ask(NEW)).status_code == 401

    run(body)


def test_who_hangs_up_or_fails_leaves_the_place() -> None:
    async def body(street: Street) -> None:
        await street.ask()
        for _ in range(3):
            task = await street.enter()
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        street.gateway.held, street.gateway.error = None, RuntimeError("no answer")
        for _ in range(3):
            with pytest.raises(RuntimeError):
                await street.ask()
        street.gateway.error = None
        assert (await street.ask()).status_code == 200

    run(body)


def test_a_redeployed_endpoint_has_another_room() -> None:
    async def body(street: Street) -> None:
        await street.ask()
        street.gateway.room = Capacity(4, 1).header()
        await street.ask()
        for _ in range(4):
            await street.enter()
        assert (await street.ask()).headers["retry-after"] in {"1", "2", "3"}

    run(body)


def test_what_is_no_post_to_a_full_endpoint_goes_on() -> None:
    async def body(street: Street) -> None:
        await street.ask()
        street.gateway.strangers = {NEW}
        await street.enter()
        await street.enter()
        street.gateway.held = None
        assert (await street.ask(method="GET")).status_code == 200
        assert (await street.ask(path="/other")).status_code == 200

    run(body)


def test_tells_of_each_refusal_and_of_nothing_else() -> None:
    async def body(street: Street) -> None:
        await street.ask()
        await street.enter()
        await street.enter()
        mine = await street.ask(**{"x-request-id": "my-own-id-1"})
        other = await street.ask()
        await street.clear()
        first, second = street.noted.records
        assert mine.headers["x-request-id"] == first.request_id == "my-own-id-1"
        assert other.headers["x-request-id"] == second.request_id != ""
        assert (first.status, first.code, first.path) == (429, "queue_full", PATH)
        assert OLD not in repr(street.noted.records)

    run(body)


def test_forgets_the_guest_it_has_not_seen_for_longest() -> None:
    async def body(street: Street) -> None:
        for number in range(MAX_KNOWN_CALLERS):
            await street.ask(f"Bearer {number}")
        await street.ask("Bearer 0")
        await street.ask("Bearer another")
        await street.enter("Bearer 0")
        await street.enter("Bearer 0")
        assert (await street.ask("Bearer 0")).status_code == 429
        street.gateway.held = None
        assert (await street.ask("Bearer 1")).status_code == 200, "it is a stranger by now"

    run(body)


Move = tuple[str, int]


@given(
    st.lists(st.one_of(st.tuples(st.just("enter"), st.integers(0, 2)), st.tuples(st.just("leave"), st.integers(0, 5))))
)
def test_as_many_are_inside_as_by_a_plain_count(moves: list[Move]) -> None:
    """Guests 0 and 1 of two endpoints and a stranger, 2, come and go; a guest is refused when two are in already."""

    async def body(street: Street) -> None:
        callers = [(OLD, "/a"), (OLD, "/b"), (NEW, "/a")]
        await street.ask(*callers[0])
        await street.ask(*callers[1])
        inside: list[tuple[int, asyncio.Task[httpx.Response]]] = []
        for move, number in moves:
            if move == "enter":
                full = number < 2 and sum(who == number for who, _ in inside) >= 2
                task = await street.enter(*callers[number])
                assert task.done() == full
                inside += [] if full else [(number, task)]
            elif number < len(inside):
                _, task = inside.pop(number)
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task

    run(body)


def test_serve_finds_it_where_a_local_cluster_is_told_to_look() -> None:
    path = worker_environment({}, ClusterConfig(), MIDDLEWARES)[PROXY_CALLBACK]
    module, _, name = path.partition(":")
    [found] = getattr(importlib.import_module(module), name)()
    door: Any = found.cls(Gateway(), *found.args, **found.kwargs)
    assert isinstance(door, LoadSheddingMiddleware)
    # A joined cluster's nodes may not have this code, without which Serve's proxy would not start.
    assert PROXY_CALLBACK not in worker_environment({}, ClusterConfig(address="auto"), MIDDLEWARES)
    assert PROXY_CALLBACK not in worker_environment({}, ClusterConfig())
