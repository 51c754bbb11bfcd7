"""The HTTP application over a backend in the same process: limits, the error envelope, and arbitrary bodies."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.endpoint import EndpointConfig
from serve.api import make_api
from serve.errors import busy
from serve.schema import Job, ModelInfo, RenderedImage

CONFIG = EndpointConfig(max_prompt_chars=50, max_images=3, max_steps=20, max_body_bytes=4096, request_timeout_s=0.5)
PATH = "/v1/images/generations"


class EchoBackend:
    """Answers with a picture that says what it was asked for."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self.error: Exception | None = None
        self.delay = 0.0
        self.cancelled = False

    async def generate(self, job: Job) -> list[RenderedImage]:
        self.jobs.append(job)
        if self.error is not None:
            raise self.error
        try:
            await asyncio.sleep(self.delay)
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        return [
            RenderedImage(f"{job.seed + i}".encode(), job.seed + i, job.width or 16, job.height or 16)
            for i in range(job.n)
        ]

    async def models(self) -> list[ModelInfo]:
        return [ModelInfo(id="aligned", created=5, release="release-1", size="16x16", aligned=True)]

    async def healthy(self) -> bool:
        if self.error is not None:
            raise self.error
        await asyncio.sleep(self.delay)
        return True


@pytest.fixture
def backend() -> EchoBackend:
    return EchoBackend()


Ask = Callable[..., httpx.Response]


@pytest.fixture
def ask(backend: EchoBackend) -> Ask:
    transport = httpx.ASGITransport(make_api(CONFIG, backend), raise_app_exceptions=True)

    def send(method: str = "POST", path: str = PATH, **kwargs: Any) -> httpx.Response:
        async def go() -> httpx.Response:
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                return await client.request(method, path, **kwargs)

        return asyncio.run(go())

    return send


def failure(response: httpx.Response) -> dict[str, Any]:
    """Return a response's error after checking that its body is the envelope and nothing else."""
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["message"]
    assert len(response.content) < 2048
    error: dict[str, Any] = body["error"]
    return error


def test_a_request_is_answered_in_openais_shape(ask: Ask, backend: EchoBackend) -> None:
    response = ask(json={"prompt": "a spoon", "n": 2, "seed": 7, "size": "24x32", "steps": 4, "guidance": 2})
    body = response.json()
    assert response.status_code == 200
    assert body["model"] == "aligned"
    assert body["size"] == "24x32"
    assert [(base64.b64decode(d["b64_json"]), d["seed"]) for d in body["data"]] == [(b"7", 7), (b"8", 8)]
    assert backend.jobs == [Job("a spoon", "aligned", 2, 7, 4, 2.0, 24, 32)]


def test_defaults_fill_in_and_a_seed_is_drawn_and_told(ask: Ask, backend: EchoBackend) -> None:
    first, second = (ask(json={"prompt": "a spoon", "n": None, "size": "auto"}).json() for _ in range(2))
    assert backend.jobs[0] == Job("a spoon", "aligned", 1, first["data"][0]["seed"], 12, 3.0, None, None)
    assert first["data"][0]["seed"] != second["data"][0]["seed"]


@pytest.mark.parametrize(
    ("change", "param", "code"),
    [
        ({"prompt": ""}, "prompt", "invalid_value"),
        ({"prompt": " \n"}, "prompt", "invalid_value"),
        ({"prompt": "x" * 51}, "prompt", "prompt_too_long"),
        ({"prompt": None}, "prompt", "invalid_value"),
        ({"prompt": ["SECRET"]}, "prompt", "invalid_value"),
        ({"n": 0}, "n", "invalid_value"),
        ({"n": 4}, "n", "invalid_value"),
        ({"n": 10**9}, "n", "invalid_value"),
        ({"n": "2"}, "n", "invalid_value"),
        ({"n": True}, "n", "invalid_value"),
        ({"n": 1.5}, "n", "invalid_value"),
        ({"size": "SECRET"}, "size", "invalid_value"),
        ({"size": "64"}, "size", "invalid_value"),
        ({"size": "0x64"}, "size", "invalid_value"),
        ({"size": "６４x64"}, "size", "invalid_value"),
        ({"response_format": "url"}, "response_format", "invalid_value"),
        ({"response_format": "SECRET"}, "response_format", "invalid_value"),
        ({"seed": -1}, "seed", "invalid_value"),
        ({"seed": 2**63}, "seed", "invalid_value"),
        ({"seed": 2**63 - 1, "n": 2}, "seed", "invalid_value"),
        ({"steps": 21}, "steps", "invalid_value"),
        ({"steps": 0}, "steps", "invalid_value"),
        ({"guidance": -0.1}, "guidance", "invalid_value"),
        ({"guidance": 1e9}, "guidance", "invalid_value"),
        ({"stepz": 3}, "stepz", "unknown_parameter"),
        ({"SECRET": 3}, None, "unknown_parameter"),
        ({"model": ""}, "model", "invalid_value"),
    ],
)
def test_a_wrong_field_is_named_and_nothing_is_echoed(
    ask: Ask, backend: EchoBackend, change: dict[str, Any], param: str | None, code: str
) -> None:
    response = ask(json={"prompt": "a spoon", **change})
    error = failure(response)
    assert response.status_code == 400
    assert (error["param"], error["code"], error["type"]) == (param, code, "invalid_request_error")
    assert "SECRET" not in response.text
    assert backend.jobs == []


def test_a_missing_prompt_is_named(ask: Ask) -> None:
    assert failure(ask(json={"n": 1}))["param"] == "prompt"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"x"',
        b'{"prompt": NaN}',
        b'{"prompt": "x", "guidance": NaN}',
        b'{"prompt": "x", "guidance": Infinity}',
        b'{"prompt": "x", "seed": 1e400}',
        b'{"prompt": "\xff\xfe"}',
        b'{"prompt": "\\ud800"}',
        b"[" * 4000,
        b'{"prompt":' * 400,
    ],
)
def test_a_body_that_is_no_request_is_refused(ask: Ask, body: bytes) -> None:
    response = ask(content=body, headers={"content-type": "application/json"})
    failure(response)
    assert response.status_code == 400


def test_a_long_body_is_refused_before_it_is_parsed(ask: Ask) -> None:
    response = ask(json={"prompt": "x" * 5_000_000})
    assert response.status_code == 413
    assert failure(response)["code"] == "body_too_large"


def test_a_long_body_of_undeclared_length_is_read_no_further_than_the_cap(ask: Ask) -> None:
    sent = 0

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(1000):
            sent += 1024
            yield b" " * 1024

    response = ask(content=chunks(), headers={"content-type": "application/json"})
    assert response.status_code == 413
    assert sent < 3 * CONFIG.max_body_bytes


def test_a_form_of_another_site_is_refused(ask: Ask, backend: EchoBackend) -> None:
    response = ask(content=json.dumps({"prompt": "x"}), headers={"content-type": "text/plain"})
    assert response.status_code == 415
    failure(response)
    assert backend.jobs == []


def test_a_slow_render_ends_in_the_envelope_and_is_cancelled(ask: Ask, backend: EchoBackend) -> None:
    backend.delay = 30.0
    response = ask(json={"prompt": "a spoon"})
    assert response.status_code == 504
    assert failure(response)["code"] == "timeout"
    assert backend.cancelled


def test_a_body_that_never_comes_ends_in_the_envelope(ask: Ask, backend: EchoBackend) -> None:
    async def dawdle() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.sleep(30)

    assert ask(content=dawdle(), headers={"content-type": "application/json"}).status_code == 504
    assert backend.jobs == []


def test_a_full_queue_tells_when_to_come_back(ask: Ask, backend: EchoBackend) -> None:
    backend.error = busy(3)
    response = ask(json={"prompt": "a spoon"})
    assert (response.status_code, response.headers["retry-after"]) == (429, "3")
    assert failure(response)["code"] == "queue_full"


def test_an_unexpected_error_says_nothing_of_itself(ask: Ask, backend: EchoBackend) -> None:
    backend.error = RuntimeError("SECRET path /root")
    response = ask(json={"prompt": "a spoon"})
    assert response.status_code == 500
    assert failure(response)["code"] == "internal_error"
    assert "SECRET" not in response.text


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", PATH, 405), ("GET", "/nope", 404), ("GET", "/docs", 404)]
)
def test_the_frameworks_own_refusals_come_in_the_envelope(ask: Ask, method: str, path: str, status: int) -> None:
    response = ask(method, path)
    assert response.status_code == status
    failure(response)
    assert status != 405 or response.headers["allow"] == "POST"


def test_models_are_listed_in_openais_shape(ask: Ask) -> None:
    body = ask("GET", "/v1/models").json()
    assert body["object"] == "list"
    assert [(m["id"], m["object"], m["created"]) for m in body["data"]] == [("aligned", "model", 5)]


def test_health_follows_the_backend(ask: Ask, backend: EchoBackend) -> None:
    assert ask("GET", "/healthz").status_code == 200
    backend.error = RuntimeError("dead")
    assert ask("GET", "/healthz").status_code == 503


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    body=st.one_of(
        st.binary(max_size=200),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=60),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
            max_leaves=8,
        ).map(lambda value: json.dumps(value).encode()),
        st.fixed_dictionaries(
            {"prompt": st.text(max_size=60)},
            optional={
                "model": st.text(max_size=10) | st.none(),
                "n": st.integers(-2, 5) | st.floats(),
                "size": st.text(max_size=8) | st.from_regex(r"\d{1,6}x\d{1,6}"),
                "seed": st.integers(-(2**70), 2**70),
                "steps": st.integers(-1, 40),
                "guidance": st.floats() | st.integers(),
                "response_format": st.sampled_from(["url", "b64_json", None, 3]),
                "user": st.text(max_size=300),
            },
        ).map(lambda value: json.dumps(value).encode()),
    )
)
def test_no_body_brings_the_server_down(ask: Ask, backend: EchoBackend, body: bytes) -> None:
    response = ask(content=body, headers={"content-type": "application/json"})
    assert response.status_code in {200, 400}
    if response.status_code == 400:
        failure(response)
    else:
        job = backend.jobs[-1]
        assert 1 <= job.n <= CONFIG.max_images
        assert 1 <= job.steps <= CONFIG.max_steps
        assert 0 <= job.guidance <= CONFIG.max_guidance
        assert 0 < len(job.prompt.strip()) <= len(job.prompt) <= CONFIG.max_prompt_chars
        assert 0 <= job.seed + job.n - 1 < 2**63
