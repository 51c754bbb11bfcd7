"""The endpoint is reached on this machine whatever proxies the environment names, by the address that it listens on."""

from __future__ import annotations

import http.server
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.errors import ClusterError
from jobs import pipeline
from jobs.run.config import RunConfig
from serve import deployment
from serve.endpoint_config import EndpointConfig


class Stub(http.server.BaseHTTPRequestHandler):
    """Answers /healthz, and refuses images with a word that shows that the request arrived."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def do_POST(self) -> None:
        self.send_response(418)
        self.end_headers()
        self.wfile.write(b"it arrived")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(params=["http://127.0.0.1:9", "socks5://127.0.0.1:9"])
def url(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Serve on an address of this machine that no list of exceptions names, with a dead proxy for everything."""
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, request.param)
        monkeypatch.setenv(name.upper(), request.param)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with http.server.ThreadingHTTPServer(("127.0.0.2", 0), Stub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.2:{server.server_port}"
        server.shutdown()


def test_a_deployment_finds_its_endpoint(url: str) -> None:
    deployment._wait_until_answering(url, EndpointConfig(), time.monotonic() + 5)


def test_the_pipeline_asks_its_endpoint(url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(pipeline, "build", lambda _: None)
    monkeypatch.setattr(pipeline, "deploy", lambda *_: url)
    monkeypatch.setattr(pipeline, "undeploy", lambda _: None)
    monkeypatch.setattr(pipeline, "first_prompts", lambda *_: [("violence", "a kitchen knife")])
    run = RunConfig.model_validate({"run": {"name": "x", "output": str(tmp_path)}})
    context: Any = SimpleNamespace(run=run, store=run_store(run), console=SimpleNamespace(print=lambda *_: None))
    with pytest.raises(ClusterError, match="the endpoint answered 418: it arrived"):
        pipeline.ask_endpoint(context, None)  # type: ignore[arg-type]


def run_store(run: RunConfig) -> Any:
    return SimpleNamespace(config=run.store)
