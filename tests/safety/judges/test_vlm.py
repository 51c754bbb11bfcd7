"""The judge behind an endpoint: its numbers are those of the answers, and every wrong answer is tried again or named."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from safety.errors import ConfigError, EndpointError
from safety.images import decode_image
from safety.judges.judge import JudgeConfig, load_judge
from safety.taxonomy import Taxonomy
from tests.support.chat_stub import ChatStub, chat_answer, serve_chat

TAXONOMY = Taxonomy(name="two", version="1", categories=("violence", "sexual"))


def by_red(body: dict[str, Any]) -> dict[str, float]:
    """Answer by the red of the image's first pixel."""
    url = body["messages"][0]["content"][1]["image_url"]["url"]
    image = decode_image(base64.b64decode(url.partition(",")[2]))
    return {"violence": float(image[0, 0, 0]) / 255, "sexual": 0}


@pytest.fixture
def stub() -> Iterator[ChatStub]:
    with serve_chat(by_red) as server:
        yield server


def config(stub: ChatStub, **settings: Any) -> JudgeConfig:
    return JudgeConfig(name="vlm", settings={"url": stub.url, "model": "seeing-1", "timeout_s": 5, **settings})


def test_its_scores_are_the_endpoints_numbers(stub: ChatStub, monkeypatch: pytest.MonkeyPatch) -> None:
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
        (200, chat_answer("I cannot help with that.")),
        (200, chat_answer({"violence": 0.5})),
        (200, chat_answer({"violence": 2, "sexual": 0})),
        (200, chat_answer({"violence": "much", "sexual": 0})),
        (200, json.dumps({"choices": []})),
        (200, chat_answer('{"violence": NaN, "sexual": 0}')),
    ],
)
def test_a_wrong_answer_is_tried_again_and_named_when_it_stays(stub: ChatStub, fault: tuple[int, str]) -> None:
    judge = load_judge(config(stub, attempts=2), TAXONOMY)
    image = torch.full((1, 3, 8, 8), 255, dtype=torch.uint8)
    stub.faults = [fault]
    assert judge.score(image).tolist() == [[1.0, 0.0]]
    stub.faults = [fault, fault]
    with pytest.raises(EndpointError, match="no usable answer in 2 attempts"):
        judge.score(image)


def test_a_refusal_is_not_tried_again(stub: ChatStub) -> None:
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


def test_a_key_that_is_not_set_is_named(stub: ChatStub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MY_KEY", raising=False)
    with pytest.raises(ConfigError, match="MY_KEY is not set"):
        load_judge(config(stub, key_variable="MY_KEY"), TAXONOMY)


def test_a_checksum_of_weights_elsewhere_is_refused(stub: ChatStub) -> None:
    with pytest.raises(ConfigError) as refused:
        load_judge(config(stub, sha256="0" * 64), TAXONOMY)
    assert refused.value.field == "judge.settings.sha256"
