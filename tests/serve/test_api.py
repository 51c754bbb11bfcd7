"""The HTTP application over a backend in the same process: limits, the error envelope, and arbitrary bodies."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serve.access import Access
from serve.admission import CAPACITY_HEADER, Capacity
from serve.errors import busy
from serve.keys import KeyRing, new_key, revoke_key
from serve.schema import Job
from tests.support.echo_endpoint import CONFIG, PATH, Ask, EchoBackend, Records, caller, failure


@pytest.fixture
def backend() -> EchoBackend:
    return EchoBackend()


@pytest.fixture
def records() -> Records:
    return Records()


@pytest.fixture
def ask(backend: EchoBackend, records: Records) -> Ask:
    return caller(CONFIG, backend, Access(None), records)


def test_a_request_is_answered_in_openais_shape(ask: Ask, backend: EchoBackend) -> None:
    response = ask(json={"prompt": "a spoon", "n": 2, "seed": 7, "size": "24x32", "steps": 4, "guidance": 2})
    body = response.json()
    assert response.status_code == 200
    assert body["model"] == "aligned"
    assert body["size"] == "24x32"
    assert [(base64.b64decode(d["b64_json"]), d["seed"]) for d in body["data"]] == [(b"7", 7), (b"8", 8)]
    assert backend.jobs == [Job("a spoon", "aligned", 2, 7, 4, 2.0, 24, 32)]


def test_defaults_fill_in_and_a_seed_is_drawn_and_returned(ask: Ask, backend: EchoBackend) -> None:
    first, second = (ask(json={"prompt": "a spoon", "n": None, "size": "auto"}).json() for _ in range(2))
    assert backend.jobs[0] == Job("a spoon", "aligned", 1, first["data"][0]["seed"], 6, 2.5, None, None)
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
        ({"size": "2049x2049"}, "size", "invalid_value"),
        ({"size": "99999x99999"}, "size", "invalid_value"),
        ({"size": ""}, "size", "invalid_value"),
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


def test_a_full_queue_says_when_to_try_again(ask: Ask, backend: EchoBackend) -> None:
    told = set()
    for _ in range(60):
        backend.error = busy(3)
        response = ask(json={"prompt": "a spoon"})
        assert response.status_code == 429
        assert failure(response)["code"] == "queue_full"
        assert f"try again in {response.headers['retry-after']} s" in failure(response)["message"]
        told.add(int(response.headers["retry-after"]))
    assert told <= set(range(3, 10))
    assert len(told) > 1, "who was refused together does not come back together"


def test_when_nothing_more_can_wait_not_even_the_body_is_read(ask: Ask, backend: EchoBackend) -> None:
    async def unread() -> AsyncIterator[bytes]:
        raise AssertionError("the body is read")
        yield b""

    backend.full = True
    response = ask(content=unread(), headers={"content-type": "application/json"})
    assert response.status_code == 429
    assert failure(response)["code"] == "queue_full"
    assert "retry-after" in response.headers
    # Requests for no image are still answered.
    assert ask("GET", "/v1/models").status_code == 200


def test_an_admitted_caller_gets_the_capacity_whatever_the_answer(
    ask: Ask, backend: EchoBackend, guarded: Guarded
) -> None:
    capacity = Capacity(CONFIG.max_requests, CONFIG.retry_after_s).header()
    assert CONFIG.max_requests == CONFIG.max_queued_requests + 2 * CONFIG.batch_size
    answers = [ask(json={"prompt": "x"}), ask(json={})]
    backend.full = True
    answers.append(ask(json={"prompt": "x"}))
    assert [(answer.status_code, answer.headers[CAPACITY_HEADER]) for answer in answers] == [
        (s, capacity) for s in (200, 400, 429)
    ]
    unverified = guarded(None)
    assert unverified.status_code == 401
    assert CAPACITY_HEADER not in unverified.headers
    assert CAPACITY_HEADER not in ask("GET", "/v1/models").headers


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


@pytest.mark.parametrize("size", ["2049x2049", "64", "1e3x64"])
def test_a_wrong_size_names_auto(ask: Ask, size: str) -> None:
    assert "'auto'" in failure(ask(json={"prompt": "x", "size": size}))["message"]


def test_a_body_that_the_server_in_front_lost_is_told_from_a_wrong_one(ask: Ask) -> None:
    offered = {"content-type": "application/json", "upgrade": "h2c", "connection": "upgrade"}
    refused = failure(ask(content=b"", headers=offered))
    assert (refused["code"], "Upgrade" in refused["message"]) == ("body_cut_short", True)
    assert ask(json={"prompt": "x"}, headers={"upgrade": "h2c"}).status_code == 200


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


def test_every_answer_carries_a_request_id_and_one_that_was_given_is_kept(ask: Ask, records: Records) -> None:
    made = [ask(json={"prompt": "a spoon"}), ask(json={}), ask("GET", "/v1/models")]
    assert [answer.headers["x-request-id"] for answer in made] == [record.request_id for record in records.seen]
    assert len({record.request_id for record in records.seen}) == 3
    # The proxy in front names requests, and sends the name back itself.
    ask(json={"prompt": "a spoon"}, headers={"x-request-id": "0a1b2c3d-4e5f"})
    assert records.seen[-1].request_id == "0a1b2c3d-4e5f"
    ask(json={"prompt": "a spoon"}, headers={"x-request-id": 'evil"} {'})
    assert len(records.seen[-1].request_id) == 32


def test_a_request_leaves_one_line_of_json_without_its_prompt(
    backend: EchoBackend, records: Records, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("serve.requests"), "handlers", [])
    ask = caller(CONFIG, backend, Access(None), records)
    ask(json={"prompt": "a SECRET spoon", "n": 2, "seed": 7, "size": "24x32", "user": "SECRET"})
    ask(json={"prompt": "a spoon", "model": "SECRET"})
    ask(json={"prompt": "SECRET", "n": "SECRET"})
    said = capsys.readouterr().err
    lines = [json.loads(line) for line in said.splitlines()]
    assert "SECRET" not in said
    first, _, third = lines
    asked = {"model": "aligned", "n": 2, "seed": 7, "size": "24x32", "steps": 6, "guidance": 2.5}
    told = {"path": PATH, "status": 200, "code": "ok", "release": "release-1", "images": 2, "batch": 2}
    assert {**asked, **told}.items() <= first.items()
    assert first["latency_s"] >= 0
    assert (third["status"], third["code"]) == (400, "invalid_value")


def test_a_prompt_is_logged_only_when_the_settings_ask_for_it(backend: EchoBackend, records: Records) -> None:
    config = CONFIG.model_copy(update={"log_prompts": True})
    caller(config, backend, Access(None), records)(json={"prompt": "a spoon"})
    assert records.seen[0].prompt == "a spoon"


def test_what_the_output_judge_reports_stands_beside_the_image(
    ask: Ask, backend: EchoBackend, records: Records
) -> None:
    backend.flagged = [False, True]
    answer = ask(json={"prompt": "a spoon", "n": 2}).json()
    assert answer["judge"] == {"name": "emoji", "version": "1", "threshold": 0.5}
    assert [entry["flagged"] for entry in answer["data"]] == [False, True]
    assert [entry["scores"] for entry in answer["data"]] == [{"violence": 0.1}, {"violence": 0.9}]
    assert all(entry["b64_json"] for entry in answer["data"])
    assert (records.seen[0].flagged, records.seen[0].withheld, records.seen[0].images) == (1, 0, 2)


def test_a_withheld_image_has_an_error_in_its_place(ask: Ask, backend: EchoBackend, records: Records) -> None:
    backend.flagged, backend.block = [False, True], True
    kept, withheld = ask(json={"prompt": "a spoon", "n": 2}).json()["data"]
    assert "b64_json" in kept
    assert "error" not in kept
    assert "b64_json" not in withheld
    assert withheld["error"]["code"] == "content_filtered"
    assert (records.seen[0].images, records.seen[0].withheld) == (1, 1)


def test_a_request_whose_images_are_all_withheld_is_refused(ask: Ask, backend: EchoBackend, records: Records) -> None:
    backend.flagged, backend.block = [True, True], True
    response = ask(json={"prompt": "a spoon", "n": 2})
    assert response.status_code == 400
    assert failure(response)["code"] == "content_filtered"
    assert (records.seen[0].code, records.seen[0].images, records.seen[0].withheld) == ("content_filtered", 0, 2)


def test_without_a_judge_the_answer_says_nothing_of_one(ask: Ask) -> None:
    answer = ask(json={"prompt": "a spoon"}).json()
    assert "judge" not in answer
    assert set(answer["data"][0]) == {"b64_json", "seed"}


class Guarded:
    """The application behind keys, and a clock that the test moves."""

    def __init__(self, file: Path, backend: EchoBackend, records: Records) -> None:
        self.now = 0.0
        self.file = file
        self.key = new_key(file, "alice", 3, 4)
        self.free = new_key(file, "bob", None, None)
        access = Access(KeyRing(file, lambda: self.now), lambda: self.now)
        self._ask = caller(CONFIG, backend, access, records)

    def __call__(self, key: str | None, method: str = "POST", path: str = PATH, **fields: Any) -> httpx.Response:
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        content = {"json": {"prompt": "a spoon", **fields}} if method == "POST" else {}
        return self._ask(method, path, headers=headers, **content)


@pytest.fixture
def guarded(tmp_path: Path, backend: EchoBackend, records: Records) -> Guarded:
    return Guarded(tmp_path / "keys.yaml", backend, records)


@pytest.mark.parametrize(
    ("key", "code"),
    [
        (None, "missing_api_key"),
        ("", "missing_api_key"),
        ("a b", "missing_api_key"),
        ("x" * 300, "missing_api_key"),
        ("sdpo-wrong", "invalid_api_key"),
    ],
)
@pytest.mark.parametrize(("method", "path"), [("POST", PATH), ("GET", "/v1/models")])
def test_a_missing_or_wrong_key_is_refused_with_401(
    guarded: Guarded, backend: EchoBackend, key: str | None, code: str, method: str, path: str
) -> None:
    backend.full = True  # which an unverified caller does not learn
    response = guarded(key, method, path)
    assert (response.status_code, failure(response)["code"]) == (401, code)
    assert response.headers["www-authenticate"] == "Bearer"
    assert backend.jobs == []


def test_a_revoked_key_is_refused_with_403_within_seconds(guarded: Guarded) -> None:
    assert guarded(guarded.free).status_code == 200
    revoke_key(guarded.file, "bob")
    guarded.now += 3.0
    response = guarded(guarded.free)
    assert (response.status_code, failure(response)["code"]) == (403, "revoked_api_key")
    assert guarded(guarded.key).status_code == 200


def test_health_and_page_ask_for_no_key(guarded: Guarded) -> None:
    assert guarded(None, "GET", "/healthz").status_code == 200
    assert guarded(None, "GET", "/").status_code == 200


def test_a_keys_requests_a_minute_are_bounded_and_come_back(guarded: Guarded) -> None:
    codes = [guarded(guarded.key).status_code for _ in range(4)]
    assert codes == [200, 200, 200, 429]
    refused = guarded(guarded.key)
    assert failure(refused)["code"] == "rate_limit_exceeded"
    assert refused.headers["retry-after"] == "20"
    assert guarded(guarded.free).status_code == 200, "another's key has its own"
    guarded.now += 20.0
    assert guarded(guarded.key).status_code == 200


def test_a_keys_images_a_minute_are_bounded(guarded: Guarded, backend: EchoBackend) -> None:
    assert guarded(guarded.key, n=3).status_code == 200
    refused = guarded(guarded.key, n=2)
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "15")
    assert len(backend.jobs) == 1
    assert guarded(guarded.key, n=1).status_code == 200


def test_images_that_were_not_made_cost_nothing(guarded: Guarded, backend: EchoBackend) -> None:
    backend.error = busy(3)
    assert guarded(guarded.key, n=3).status_code == 429
    backend.error = None
    assert guarded(guarded.key, n=3).status_code == 200


def test_the_log_names_the_key_and_never_holds_it(
    guarded: Guarded, records: Records, capsys: pytest.CaptureFixture[str]
) -> None:
    guarded(guarded.key)
    guarded("sdpo-wrong-but-still-a-secret")
    assert [record.key for record in records.seen] == ["alice", None]
    said = "".join(capsys.readouterr()) + repr(records.seen)
    assert guarded.key not in said
    assert "still-a-secret" not in said
