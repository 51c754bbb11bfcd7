"""Stores of both kinds, and a wire that fails on demand between a client and the real S3 server."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from cluster.store.artifacts import ArtifactStore
from tests.support.s3_server import RunningServer

BUSY = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
CHUNK, HEAD_END = 65536, b"\r\n\r\n"


class Wire:
    """Passes connections on to the server, and does to the n-th connection what ``faults[n]`` says.

    "busy" answers 503; "mute" brings the request to the server and loses its answer; "cut" loses the answer's second
    half; "head" brings only the request's head to the server, and then closes both connections.
    """

    def __init__(self, port: int) -> None:
        self.port, self.faults, self.seen = port, dict[int, str](), 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        # close() alone would leave the thread that accepts, and so the port, as they are.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                fault = self.faults.get(self.seen)
                self.seen += 1
                threading.Thread(target=self._serve, args=(client, fault), daemon=True).start()

    def _serve(self, client: socket.socket, fault: str | None) -> None:
        with contextlib.suppress(OSError), client, socket.create_connection(("127.0.0.1", self.port)) as server:
            if fault == "busy":
                client.recv(CHUNK)
                client.sendall(BUSY)
                return
            if fault == "head":
                head, end, _ = client.recv(CHUNK).partition(HEAD_END)
                server.sendall(head + end)
                server.shutdown(socket.SHUT_WR)
                server.recv(CHUNK)  # closed by the server, or answered, once it has done what it does
                return
            sender = threading.Thread(target=_pump, args=(client, server), daemon=True)
            sender.start()
            if fault is None:
                _pump(server, client)
                return
            answer = server.recv(CHUNK)
            if fault == "cut":
                client.sendall(answer[: len(answer) // 2])
            client.shutdown(socket.SHUT_RDWR)  # close() alone waits for the sender, which waits for the client


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(CHUNK):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


@pytest.fixture
def store(any_store: ArtifactStore) -> ArtifactStore:
    """Run a test of the contract once for each kind of store."""
    return any_store


@pytest.fixture
def wire(s3_server: RunningServer) -> Iterator[Wire]:
    found = Wire(s3_server.port)
    yield found
    found.close()


@pytest.fixture
def over_wire(s3_store: ArtifactStore, wire: Wire) -> Callable[..., ArtifactStore]:
    """Return a function that gives the same store seen through the wire, with settings of its own."""

    def through(**settings: object) -> ArtifactStore:
        return ArtifactStore(s3_store.config.model_copy(update={"endpoint": wire.endpoint, **settings}))

    return through
