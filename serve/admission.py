"""Turns requests away where they arrive, in the server that speaks HTTP, once as many are inside as there is room for.

``RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=serve.admission:middlewares`` in the environment of Ray's processes has Serve put
it in front of its own proxy, or, behind HAProxy, in front of each gateway.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections import Counter, OrderedDict
from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.errors import busy
from serve.metrics import RequestMetrics
from serve.request_log import REQUEST_ID_HEADER, JsonLog, Observer, Observers, RequestRecord, given_id, new_id

ROOM_HEADER = "x-endpoint-room"
ROOM = re.compile(r"([0-9]{1,9});([0-9]{1,9})")
GUESTS_KEPT = 1024


@dataclass(frozen=True)
class Room:
    """How many requests an endpoint takes in at once, and the least seconds after which a refused one may come back."""

    places: int
    retry_after_s: int

    def header(self) -> str:
        """Return what the gateway tells the door of it."""
        return f"{self.places};{self.retry_after_s}"


def told_room(header: str | None) -> Room | None:
    """Return the room that a gateway's header tells of; None where it tells of none."""
    found = ROOM.fullmatch(header or "")
    return Room(int(found[1]), int(found[2])) if found else None


class Door:
    """Counts the requests inside and refuses the next one by that number alone.

    Behind it, Serve's proxy and the gateway take some 8 ms of CPU to refuse a request; with many at once that time adds
    up, for those refused and for those who wait. It learns from the gateway's answers how much room there is, and who
    was let in: a caller whose key has not been looked at is always sent on, so that strangers are told that they are
    strangers and cannot take the places of guests. The gateway still has the last word, on what comes by several doors.
    """

    def __init__(self, app: ASGIApp, observer: Observer) -> None:
        """Stand before an application; the observer hears of who is turned away."""
        self._app, self._observer = app, observer
        self._guests: OrderedDict[tuple[str, bytes], Room] = OrderedDict()
        self._inside: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send a request on, or answer it with 429 when its endpoint is known to be full."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        path = scope["path"]
        guest = path, hashlib.sha256(Headers(scope=scope).get("authorization", "").encode()).digest()
        room = self._guests.get(guest)
        if room is None:
            await self._app(scope, receive, self._listening(guest, send))
        elif self._inside[path] >= room.places:
            await self._refuse(room, scope, receive, send)
        else:
            self._inside[path] += 1
            try:
                await self._app(scope, receive, self._listening(guest, send))
            finally:
                self._inside[path] -= 1

    def _listening(self, guest: tuple[str, bytes], send: Send) -> Send:
        """Return a ``send`` that takes the gateway's word out of the answer and remembers it."""

        async def listen(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                room = told_room(headers.get(ROOM_HEADER))
                if room is None:
                    self._guests.pop(guest, None)
                else:
                    del headers[ROOM_HEADER]
                    self._guests[guest] = room
                    self._guests.move_to_end(guest)
                    if len(self._guests) > GUESTS_KEPT:
                        self._guests.popitem(last=False)
            await send(message)

        return listen

    async def _refuse(self, room: Room, scope: Scope, receive: Receive, send: Send) -> None:
        started = time.perf_counter()
        given = given_id(scope["headers"])
        record = RequestRecord(given or new_id(), scope["path"])
        failure = busy(room.retry_after_s).failure
        response = failure.response()
        response.headers[REQUEST_ID_HEADER] = record.request_id
        record.status, record.code = failure.status, failure.code
        try:
            await response(scope, receive, send)
        finally:
            record.latency_s = time.perf_counter() - started
            self._observer.observe(record)


def middlewares() -> list[Middleware]:
    """Return what Serve puts before its HTTP servers."""
    return [Middleware(Door, observer=Observers([JsonLog(), RequestMetrics()]))]
