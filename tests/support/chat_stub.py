"""An endpoint of OpenAI's chat form whose answers a test decides, after as many faults as it is given."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = Callable[[dict[str, Any]], Any]
"""A request's body in; out the answer's content (a text, or a document for JSON), or a whole choice under "message"."""


class ChatStub(ThreadingHTTPServer):
    """Serves on loopback and keeps what it was asked."""

    daemon_threads = True

    def __init__(self, answer: Answer) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer = answer
        self.faults: list[tuple[int, str]] = []
        """Status and body of the next answers, before the others."""
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class _Handler(BaseHTTPRequestHandler):
    server: ChatStub

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append(body)
        self.server.keys.append(self.headers.get("Authorization"))
        if self.server.faults:
            status, text = self.server.faults.pop(0)
        else:
            status, text = 200, chat_answer(self.server.answer(body))
        data = text.encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


def chat_answer(content: Any) -> str:
    """Return an answer's body with one choice."""
    if isinstance(content, dict) and "message" in content:
        return json.dumps({"choices": [content]})
    text = content if isinstance(content, str) else json.dumps(content)
    return json.dumps({"choices": [{"message": {"content": text}}]})


@contextmanager
def serve_chat(answer: Answer) -> Iterator[ChatStub]:
    """Serve in a thread until the context ends."""
    server = ChatStub(answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
