"""A proxy between a client and the real S3 server that fails as networks and busy stores do.

One request a connection. The request's bytes pass unchanged but for ``Connection: close``, which is not signed; the
client signs the proxy's own address as the host, and the server checks the signature against the host it is told.
"""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import threading
import time
from collections import Counter
from dataclasses import dataclass

BUSY = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/xml\r\nConnection: close\r\nContent-Length: 61\r\n\r\n"
    b"<Error><Code>SlowDown</Code><Message>later</Message></Error>\r\n"
)
CHUNK, HEAD_END = 65536, b"\r\n\r\n"
RESET = struct.pack("ii", 1, 0)


@dataclass(frozen=True)
class Faults:
    """Shares of requests that meet each fault; they add up to at most 1."""

    busy: float = 0.0
    """Answered by 503."""
    cut_request: float = 0.0
    """Reset in the middle of the request's body: the server gets half of it."""
    lost_answer: float = 0.0
    """Done by the server, and reset before the answer."""
    cut_answer: float = 0.0
    """Reset in the middle of the answer."""
    latency_s: float = 0.0

    def draw(self, chance: float) -> str:
        """Return the fault at a point of [0, 1)."""
        for name in ("busy", "cut_request", "lost_answer", "cut_answer"):
            share = getattr(self, name)
            if chance < share:
                return name
            chance -= share
        return "passed"


class FaultyProxy:
    """Listens on loopback, and does to each request what chance says."""

    def __init__(self, port: int, faults: Faults, seed: int = 0) -> None:
        """Stand before the server on ``port``."""
        self.port, self.faults, self.away = port, faults, False
        self.seen: Counter[str] = Counter()
        self._random, self._lock = random.Random(seed), threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.endpoint = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def outage(self, seconds: float) -> None:
        """Reset every connection for a while."""
        self.away = True
        time.sleep(seconds)
        self.away = False

    def close(self) -> None:
        """Stop listening."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError), client:
            head, body = _request(client)
            with self._lock:
                fault = "outage" if self.away else self.faults.draw(self._random.random())
                self.seen[fault] += 1
            if fault == "outage":
                _reset(client)
                return
            time.sleep(self.faults.latency_s)
            if fault == "busy":
                client.sendall(BUSY)
                return
            if fault == "cut_request":
                self._send_half(head, body)
                _reset(client)
                return
            answer = self._ask(head, body)
            if fault == "lost_answer":
                _reset(client)
            elif fault == "cut_answer":
                client.sendall(answer[: max(1, len(answer) - max(1, len(answer.partition(HEAD_END)[2]) // 2))])
                _reset(client)
            else:
                client.sendall(answer)

    def _ask(self, head: bytes, body: bytes) -> bytes:
        with socket.create_connection(("127.0.0.1", self.port)) as server:
            server.sendall(_closing(head) + body)
            return b"".join(iter(lambda: server.recv(CHUNK), b""))

    def _send_half(self, head: bytes, body: bytes) -> None:
        with socket.create_connection(("127.0.0.1", self.port)) as server:
            server.sendall(_closing(head) + body[: len(body) // 2] if body else head[: len(head) // 2])
            _reset(server)


def _request(client: socket.socket) -> tuple[bytes, bytes]:
    """Return a request's head, its last empty line with it, and its body."""
    data = b""
    while HEAD_END not in data:
        data += _more(client)
    head, _, body = data.partition(HEAD_END)
    lengths = [line.split(b":")[1] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    while len(body) < int(lengths[0] if lengths else 0):
        body += _more(client)
    return head + HEAD_END, body


def _more(client: socket.socket) -> bytes:
    data = client.recv(CHUNK)
    if not data:
        raise ConnectionError("the client has gone")
    return data


def _closing(head: bytes) -> bytes:
    lines = [line for line in head.removesuffix(HEAD_END).split(b"\r\n") if not line.lower().startswith(b"connection:")]
    return b"\r\n".join([*lines, b"Connection: close"]) + HEAD_END


def _reset(connection: socket.socket) -> None:
    """Close with RST, and let nothing that waits be sent."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    connection.close()
