"""An endpoint that misbehaves in every way: each fault is tried again, is an answer without text, or ends with its cause."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from safety.errors import ConfigError, EndpointError
from safety.prompts.llm.engines.engine import ChatAnswer, ChatRequest, Message, engines
from safety.prompts.llm.engines.openai_chat import OpenAiConfig
from tests.support.chat_stub import ChatStub, serve_chat


def by_text(body: dict[str, Any]) -> Any:
    said = body["messages"][-1]["content"]
    special: dict[str, Any] = {
        "refuse": {"message": {"content": None, "refusal": "I must not."}},
        "filter": {"message": {"content": "half a"}, "finish_reason": "content_filter"},
        "nothing": {"message": {"content": None}},
    }
    return special.get(said, {"prompt": f"a {said}"})


@pytest.fixture
def stub() -> Iterator[ChatStub]:
    with serve_chat(by_text) as server:
        yield server


def ask(stub: ChatStub, *texts: str, **settings: Any) -> list[ChatAnswer]:
    endpoint = {"url": stub.url, "model": "chat-1", "timeout_s": 5, **settings.pop("endpoint", {})}
    config = OpenAiConfig.model_validate({"engine": "openai", "endpoint": endpoint, **settings})
    requests = [ChatRequest((Message(role="user", content=text),), "prompt", 2**62 + n) for n, text in enumerate(texts)]
    return engines["openai"].load(config).answer(requests)


def test_answers_come_in_the_requests_order_each_held_to_the_schema(stub: ChatStub) -> None:
    names = [f"kite {n}" for n in range(20)]
    assert [json.loads(answer.text)["prompt"] for answer in ask(stub, *names)] == [f"a {name}" for name in names]
    body = stub.requests[0]
    assert body["model"] == "chat-1"
    assert body["response_format"]["json_schema"]["strict"] is True
    assert body["response_format"]["json_schema"]["schema"]["required"] == ["prompt"]
    assert len({body["seed"] for body in stub.requests}) == 20
    assert all(0 <= body["seed"] < 2**31 for body in stub.requests)


@pytest.mark.parametrize(("structure", "sent"), [("json_object", {"type": "json_object"}), ("none", None)])
def test_an_endpoint_that_knows_no_schema_is_asked_without(stub: ChatStub, structure: str, sent: Any) -> None:
    ask(stub, "kite", structure=structure)
    assert stub.requests[0].get("response_format") == sent


def test_refusals_and_answers_without_text_are_answers(stub: ChatStub) -> None:
    assert ask(stub, "refuse", "filter", "nothing") == [
        ChatAnswer("", refused=True),
        ChatAnswer("half a", refused=True),
        ChatAnswer(""),
    ]


@pytest.mark.parametrize(
    "fault",
    [
        (429, "slow down"),
        (500, ""),
        (503, "<html>"),
        (200, "<html>a proxy's page</html>"),
        (200, "[]"),
        (200, "{}"),
        (200, '{"choices": []}'),
        (200, '{"choices": [{}]}'),
        (200, "x" * (5 * 2**20)),
    ],
)
def test_a_fault_that_may_pass_is_tried_again(stub: ChatStub, fault: tuple[int, str]) -> None:
    stub.faults = [fault, fault]
    assert json.loads(ask(stub, "kite")[0].text) == {"prompt": "a kite"}
    assert len(stub.requests) == 3


def test_a_fault_that_stays_ends_with_its_cause(stub: ChatStub) -> None:
    stub.faults = [(503, "")] * 9
    with pytest.raises(EndpointError, match="no usable answer in 2 attempts: status 503") as caught:
        ask(stub, "kite", endpoint={"attempts": 2})
    assert caught.value.field == "prompts.writer.engine.endpoint"


def test_a_request_that_is_refused_is_not_tried_again(stub: ChatStub) -> None:
    stub.faults = [(401, "who are you")]
    with pytest.raises(EndpointError, match="answers 401: who are you"):
        ask(stub, "kite")
    assert len(stub.requests) == 1


def test_an_endpoint_that_is_not_there_is_named(stub: ChatStub) -> None:
    with pytest.raises(EndpointError, match="ConnectError"):
        ask(stub, "kite", endpoint={"url": "http://127.0.0.1:9/v1", "attempts": 1})


def test_the_key_is_sent_and_a_missing_one_is_named(stub: ChatStub, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="CHAT_KEY is not set") as caught:
        ask(stub, "kite", endpoint={"key_variable": "CHAT_KEY"})
    assert caught.value.field == "prompts.writer.engine.endpoint.key_variable"
    monkeypatch.setenv("CHAT_KEY", "secret")
    ask(stub, "kite", endpoint={"key_variable": "CHAT_KEY"})
    assert stub.keys == ["Bearer secret"]


def test_where_the_endpoint_is_is_no_part_of_the_recipe(stub: ChatStub) -> None:
    one, other = (
        OpenAiConfig.model_validate({"endpoint": {"url": f"http://{host}/v1", "model": "chat-1"}})
        for host in ("a", "b")
    )
    assert one.recipe() == other.recipe()
    assert one.recipe()["identity"] == "chat-1"
