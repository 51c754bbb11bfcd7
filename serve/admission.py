"""Admission control: rejects requests with 429 before they reach Serve's proxy, once the endpoint is at its capacity.

With ``RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=serve.admission:middlewares`` in the environment of Ray's processes,
Serve puts the middleware in front of its own proxy or, behind HAProxy, in front of each gateway.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections import Counter, OrderedDict
from dataclasses import dataclass

import uvicorn.config
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.errors import SHOULD_RETRY_HEADER, busy
from serve.metrics import RequestMetrics
from serve.request_log import REQUEST_ID_HEADER, JsonLog, Observer, Observers, RequestRecord, given_id, new_id

CAPACITY_HEADER = "x-endpoint-capacity"
CAPACITY = re.compile(r"([0-9]{1,9});([0-9]{1,9})")
CORS_HEADERS = ("access-control-", "vary")
TIMEOUTS = (408, 504)
"""Answers of Serve's proxy, in plain text, that OpenAI's clients would ask for again."""
MAX_KNOWN_CALLERS = 1024
"""Callers with a verified key that are remembered; the one seen least recently is forgotten first."""


@dataclass(frozen=True)
class Capacity:
    """The number of requests an endpoint takes at once, and the least Retry-After of a rejected one in seconds."""

    max_requests: int
    retry_after_s: int

    def header(self) -> str:
        """Return the value of the header in which the gateway reports it to the middleware."""
        return f"{self.max_requests};{self.retry_after_s}"


def parse_capacity(header: str | None) -> Capacity | None:
    """Return the capacity that a gateway's header states; None where there is no such header."""
    found = CAPACITY.fullmatch(header or "")
    return Capacity(int(found[1]), int(found[2])) if found else None


@dataclass(frozen=True)
class Known:
    """What is known of a caller: its endpoint's capacity, and the headers that let its web page read the answers."""

    capacity: Capacity
    cors: tuple[tuple[str, str], ...] = ()


class LoadSheddingMiddleware:
    """ASGI middleware that counts the requests in flight and rejects one over the capacity by that number alone.

    Behind it, Serve's proxy and the gateway take some 8 ms of CPU to reject a request. With many requests at once that
    time adds up, for rejected and waiting requests alike. The middleware learns the capacity from the gateway's
    answers. Callers with an unverified key are always forwarded, so they get 401 and never use up capacity. The gateway
    still checks the capacity itself, since requests may arrive through several proxies.
    """

    def __init__(self, app: ASGIApp, observer: Observer) -> None:
        """Wrap an application; ``observer`` gets the record of each rejected request."""
        self._app, self._observer = app, observer
        self._known_callers: OrderedDict[tuple[str, bytes], Known] = OrderedDict()
        self._in_flight: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward a request, or answer it with 429 when its endpoint is known to be full."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        path = scope["path"]
        headers = Headers(scope=scope)
        who = f"{headers.get('authorization', '')}\n{headers.get('origin', '')}"
        caller = path, hashlib.sha256(who.encode()).digest()
        known = self._known_callers.get(caller)
        if known is None:
            await self._app(scope, receive, self._learning(caller, send))
        elif self._in_flight[path] >= known.capacity.max_requests:
            await self._refuse(known, scope, receive, send)
        else:
            self._in_flight[path] += 1
            try:
                await self._app(scope, receive, self._learning(caller, send))
            finally:
                self._in_flight[path] -= 1

    def _learning(self, caller: tuple[str, bytes], send: Send) -> Send:
        """Return a ``send`` that takes the capacity header out of the answer and remembers its value."""

        async def listen(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                capacity = parse_capacity(headers.get(CAPACITY_HEADER))
                if capacity is None:
                    self._known_callers.pop(caller, None)
                else:
                    del headers[CAPACITY_HEADER]
                    cors = tuple((name, value) for name, value in headers.items() if name.startswith(CORS_HEADERS))
                    self._known_callers[caller] = Known(capacity, cors)
                    self._known_callers.move_to_end(caller)
                    if len(self._known_callers) > MAX_KNOWN_CALLERS:
                        self._known_callers.popitem(last=False)
                if message["status"] in TIMEOUTS:
                    headers[SHOULD_RETRY_HEADER] = "false"
            await send(message)

        return listen

    async def _refuse(self, known: Known, scope: Scope, receive: Receive, send: Send) -> None:
        started = time.perf_counter()
        given = given_id(scope["headers"])
        record = RequestRecord(given or new_id(), scope["path"])
        failure = busy(known.capacity.retry_after_s).failure
        response = failure.response()
        response.headers.update(dict(known.cors))
        response.headers[REQUEST_ID_HEADER] = record.request_id
        record.status, record.code = failure.status, failure.code
        try:
            await response(scope, receive, send)
        finally:
            record.latency_s = time.perf_counter() - started
            self._observer.observe(record)


def serve_offered_upgrades() -> None:
    """Have this process's uvicorn answer requests that offer ``Upgrade: h2c`` (``curl --http2``, Java's HttpClient).

    Its httptools parser takes the body of such a request for the other protocol's first bytes and loses it. Its h11
    parser goes on in HTTP/1.1, as a server may. Serve leaves the choice to uvicorn's "auto", and gives no other way.
    """
    uvicorn.config.HTTP_PROTOCOLS["auto"] = uvicorn.config.HTTP_PROTOCOLS["h11"]


def middlewares() -> list[Middleware]:
    """Return the middlewares that Serve puts in front of its HTTP servers; called in each before it listens."""
    serve_offered_upgrades()
    return [Middleware(LoadSheddingMiddleware, observer=Observers([JsonLog(), RequestMetrics()]))]


MIDDLEWARES = f"{middlewares.__module__}:{middlewares.__name__}"
"""The import path that a cluster's environment gives to Serve's HTTP servers."""
