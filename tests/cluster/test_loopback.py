"""Requests to this machine arrive, whatever proxies the environment names."""

from __future__ import annotations

import http.server
import os
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import requests

from cluster.loopback import NO_PROXY, exempted_loopback, loopback_fault
from cluster.session import ClusterConfig, worker_environment

ROOT = Path(__file__).parent.parent.parent
DEAD_END = "http://127.0.0.1:9"
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
ADDED = "127.0.0.1,localhost,::1"


@pytest.fixture
def proxied(monkeypatch: pytest.MonkeyPatch) -> None:
    """Name a proxy that answers nothing, and no exception."""
    for name in PROXIES:
        monkeypatch.setenv(name, DEAD_END)
    for name in NO_PROXY:
        monkeypatch.delenv(name, raising=False)


class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"here")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


@pytest.mark.parametrize(
    ("before", "lower", "upper"),
    [
        ({}, ADDED, ADDED),
        ({"no_proxy": "corp.example"}, f"corp.example,{ADDED}", f"corp.example,{ADDED}"),
        ({"NO_PROXY": "corp.example"}, f"corp.example,{ADDED}", f"corp.example,{ADDED}"),
        ({"no_proxy": "a, b ,", "NO_PROXY": "c"}, f"a,b,{ADDED}", f"c,{ADDED}"),
        ({"no_proxy": "localhost,::1"}, "localhost,::1,127.0.0.1", "localhost,::1,127.0.0.1"),
        ({"no_proxy": ADDED, "NO_PROXY": ADDED}, ADDED, ADDED),
        ({"no_proxy": "*"}, "*", "*"),
        ({"NO_PROXY": "*, x"}, "*", "*"),
    ],
)
def test_loopback_joins_what_is_exempted_already(before: dict[str, str], lower: str, upper: str) -> None:
    assert exempted_loopback(before) == {"no_proxy": lower, "NO_PROXY": upper}


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
@pytest.mark.parametrize(
    "get",
    [
        lambda url: urllib.request.build_opener().open(url, timeout=5).read(),
        lambda url: requests.get(url, timeout=5).content,
        lambda url: httpx.get(url, timeout=5).content,
    ],
    ids=["urllib", "requests", "httpx"],
)
def test_every_client_reaches_loopback(
    proxied: None, port: int, monkeypatch: pytest.MonkeyPatch, get: Callable[[str], bytes], host: str
) -> None:
    with pytest.raises((OSError, httpx.HTTPError)):
        get(f"http://{host}:{port}/")
    for name, value in exempted_loopback(os.environ).items():
        monkeypatch.setenv(name, value)
    assert get(f"http://{host}:{port}/") == b"here"


def test_every_process_that_runs_our_code_exempts_loopback() -> None:
    environment = {"PATH": os.environ["PATH"], "http_proxy": DEAD_END, "NO_PROXY": "corp.example"}
    code = "import os, cluster; print(os.environ['no_proxy'], os.environ['NO_PROXY'])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.split() == [f"corp.example,{ADDED}"] * 2, done.stderr


def test_a_local_clusters_processes_exempt_loopback_and_anothers_keep_their_own(proxied: None) -> None:
    found = worker_environment(ClusterConfig())
    assert {name: found[name] for name in NO_PROXY} == dict.fromkeys(NO_PROXY, ADDED)
    assert not worker_environment(ClusterConfig(address="auto")).keys() & set(NO_PROXY)


def test_loopback_that_is_not_reached_is_named_with_the_proxies(proxied: None, monkeypatch: pytest.MonkeyPatch) -> None:
    fault = loopback_fault()
    assert fault is not None
    assert "a request to http://127.0.0.1:" in fault
    assert "proxies in the environment: all, http, https" in fault
    monkeypatch.setenv("no_proxy", exempted_loopback({})["no_proxy"])
    assert loopback_fault() is None
