"""The judge behind an endpoint: its numbers are those of the answers, and every wrong answer is tried again or named."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import torch

from safety.errors import ConfigError, EndpointError
from safety.images import decode_image
from safety.judges.judge import JudgeConfig, load_judge
from safety.taxonomy import Taxonomy

TAXONOMY = Taxonomy(name="two", version="1", categories=("violence", "sexual"))


class Stub(ThreadingHTTPServer):
    """Answers by the red of an image's first pixel, after as many faults as it is given."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.faults: list[tuple[int, str]] = []
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []


class Handler(BaseHTTPRequestHandler):
    server: Stub

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append(body)
        self.server.keys.append(self.headers.get("Authorization"))
        if self.server.faults:
            status, text = self.server.faults.pop(0)
        else:
            url = body["messages"][0]["content"][1]["image_url"]["url"]
            image = decode_image(base64.b64decode(url.partition(",")[2]))
            status, text = 200, answer({"violence": float(image[0, 0, 0]) / 255, "sexual": 0})
        data = text.encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


def answer(content: Any) -> str:
    text = content if isinstance(content, str) else json.dumps(content)
    return json.dumps({"choices": [{"message": {"content": text}}]})


@pytest.fixture
def stub() -> Iterator[Stub]:
    server = Stub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def config(stub: Stub, **settings: Any) -> JudgeConfig:
    url = f"http://127.0.0.1:{stub.server_port}/v1"
    return JudgeConfig(name="vlm", settings={"url": url, "model": "seeing-1", "timeout_s": 5, **settings})


def test_its_scores_are_the_endpoints_numbers(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "secret")
    judge = load_judge(config(stub, key_variable="MY_KEY"), TAXONOMY)
    images = torch.zeros(3, 3, 8, 8, dtype=torch.uint8)
    images[1, 0], images[2, 0] = 51, 255
    assert judge.score(images).tolist() == [[0.0, 0.0], [pytest.approx(0.2), 0.0], [1.0, 0.0]]
    assert judge.version == "seeing-1"
    assert stub.keys == ["Bearer secret"] * 3
    text = stub.requests[0]["messages"][0]["content"][0]["text"]
    assert '["violence", "sexual"]' in text


@pytest.mark.parametrize(
    "fault",
    [
        (503, "busy"),
        (200, "no json"),
        (200, answer("I cannot help with that.")),
        (200, answer({"violence": 0.5})),
        (200, answer({"violence": 2, "sexual": 0})),
        (200, answer({"violence": "much", "sexual": 0})),
        (200, json.dumps({"choices": []})),
        (200, answer('{"violence": NaN, "sexual": 0}')),
    ],
)
def test_a_wrong_answer_is_tried_again_and_named_when_it_stays(stub: Stub, fault: tuple[int, str]) -> None:
    judge = load_judge(config(stub, attempts=2), TAXONOMY)
    image = torch.full((1, 3, 8, 8), 255, dtype=torch.uint8)
    stub.faults = [fault]
    assert judge.score(image).tolist() == [[1.0, 0.0]]
    stub.faults = [fault, fault]
    with pytest.raises(EndpointError, match="no usable answer in 2 attempts"):
        judge.score(image)


def test_a_refusal_is_not_tried_again(stub: Stub) -> None:
    stub.faults = [(401, "who are you")]
    with pytest.raises(EndpointError, match="answers 401: who are you"):
        load_judge(config(stub), TAXONOMY).score(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    assert len(stub.requests) == 1


def test_nobody_there_is_named() -> None:
    settings = {"url": "http://127.0.0.1:9/v1", "model": "x", "attempts": 1, "timeout_s": 2}
    with pytest.raises(EndpointError, match="ConnectError"):
        load_judge(JudgeConfig(name="vlm", settings=settings), TAXONOMY).score(
            torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
        )


def test_a_key_that_is_not_set_is_named(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MY_KEY", raising=False)
    with pytest.raises(ConfigError, match="MY_KEY is not set"):
        load_judge(config(stub, key_variable="MY_KEY"), TAXONOMY)
