"""``Upgrade: h2c``, as curl --http2 and Java's HttpClient offer it: served as HTTP/1.1, with the body whole."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator

import pytest
import uvicorn
import uvicorn.config

from serve.access import Access
from serve.admission import middlewares
from serve.api import make_api
from serve.request_log import Observers
from tests.support.echo_endpoint import CONFIG, PATH, EchoBackend

BODY = b'{"prompt": "a spoon", "seed": 7}'


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """Serve the application as Serve starts its HTTP servers: its middlewares first, then uvicorn's own choices."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(uvicorn.config.HTTP_PROTOCOLS, "auto", uvicorn.config.HTTP_PROTOCOLS["auto"])
        app = make_api(CONFIG, EchoBackend(), Access(None), Observers([]))
        for middleware in middlewares():
            app = middleware.cls(app, *middleware.args, **middleware.kwargs)  # type: ignore[assignment]
        with socket.create_server(("127.0.0.1", 0)) as listener:
            server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_level="error"))
            thread = threading.Thread(target=asyncio.run, args=(server.serve(sockets=[listener]),), daemon=True)
            thread.start()
            while not server.started:
                time.sleep(0.01)
            yield listener.getsockname()[1]
            server.should_exit = True
            thread.join(30)


def offering(body: bytes, protocol: str, chunked: bool) -> tuple[bytes, bytes]:
    """Return the head and the body of a request that offers another protocol."""
    length = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % len(body)
    lines = (
        b"POST %s HTTP/1.1" % PATH.encode(),
        b"Host: localhost",
        b"Content-Type: application/json",
        b"Connection: Upgrade, HTTP2-Settings",
        b"Upgrade: %s" % protocol.encode(),
        b"HTTP2-Settings: AAEAAEAAAAIAAAAAAAMAAAAAAAQBAAAAAAUAAEAAAAYABgAA",
        length,
        b"",
        b"",
    )
    return b"\r\n".join(lines), b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body) if chunked else body


def answer(connection: socket.socket) -> tuple[bytes, bytes]:
    """Read one answer; return its status line and its body."""
    with connection.makefile("rb") as stream:
        status, length = stream.readline(), 0
        while line := stream.readline().strip():
            name, _, value = line.partition(b":")
            length = int(value) if name.lower() == b"content-length" else length
        return status, stream.read(length)


@pytest.mark.parametrize("protocol", ["h2c", "websocket-of-tomorrow"])
@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("apart", [False, True])
def test_an_offered_upgrade_is_ignored_and_the_body_arrives(
    port: int, protocol: str, chunked: bool, apart: bool
) -> None:
    head, body = offering(BODY, protocol, chunked)
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        for _ in range(2):  # the connection stays usable
            connection.sendall(head if apart else head + body)
            if apart:
                time.sleep(0.05)
                connection.sendall(body)
            status, found = answer(connection)
            assert status.startswith(b"HTTP/1.1 200"), found
            assert json.loads(found)["data"][0]["seed"] == 7
