"""A language model behind any endpoint of OpenAI's chat form: a vendor's, vLLM's, llama.cpp's, a Ray Serve LLM."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

from pydantic import Field

from safety.chat_endpoint import ChatEndpoint, ChatEndpointConfig
from safety.prompts.llm.engines.engine import (
    FIELD,
    ChatAnswer,
    ChatEngine,
    ChatRequest,
    EngineConfig,
    EngineLoader,
    engines,
)

NAME = "openai"
Structure = Literal["json_schema", "json_object", "none"]
SEEDS = 2**31
"""Seeds that every endpoint takes are below this."""


class OpenAiConfig(EngineConfig):
    """The endpoint, and how its answers are structured."""

    engine: Literal["openai"] = "openai"
    endpoint: ChatEndpointConfig
    structure: Structure = Field(
        "json_schema",
        description="how the endpoint is asked for JSON: by a schema that it holds the answer to, as JSON of any form, or by "
        "the instruction alone, for endpoints that know neither",
    )
    concurrency: int = Field(8, ge=1, description="requests of one process at once")

    @property
    def model_name(self) -> str:
        """Return the model's name there."""
        return self.endpoint.model

    def identity(self) -> str:
        """Return the model's name there: more of it cannot be seen from here."""
        return self.endpoint.model

    def recipe(self) -> dict[str, Any]:
        """Return the settings that the answers depend on: not where the endpoint is, or how long it is waited for."""
        kept = {"engine", "temperature", "max_new_tokens", "structure"}
        return {**self.model_dump(mode="json", include=kept), "identity": self.identity()}


class OpenAiEngine:
    """Asks the endpoint, several requests at once."""

    def __init__(self, config: OpenAiConfig) -> None:
        self._config = config
        self._endpoint = ChatEndpoint(config.endpoint, f"{FIELD}.endpoint")

    def answer(self, requests: Sequence[ChatRequest]) -> list[ChatAnswer]:
        """Return the answers; raise EndpointError when the endpoint refuses or cannot be reached."""
        with ThreadPoolExecutor(self._config.concurrency) as pool:
            return list(pool.map(self._one, requests))

    def _one(self, request: ChatRequest) -> ChatAnswer:
        body: dict[str, Any] = {
            "messages": [message.model_dump() for message in request.messages],
            "temperature": self._config.temperature,
            "max_tokens": self._config.max_new_tokens,
            "seed": request.seed % SEEDS,
        }
        if self._config.structure == "json_schema":
            schema = {"name": "answer", "strict": True, "schema": request.schema()}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        elif self._config.structure == "json_object":
            body["response_format"] = {"type": "json_object"}
        return self._endpoint.ask(body, _read_choice)


def _read_choice(choice: dict[str, Any]) -> ChatAnswer:
    message = choice["message"]
    refused = bool(message.get("refusal")) or choice.get("finish_reason") == "content_filter"
    content = message.get("content")
    return ChatAnswer(content if isinstance(content, str) else "", refused)


class _Loader:
    config_type: type[EngineConfig] = OpenAiConfig

    def load(self, config: Any) -> ChatEngine:
        return OpenAiEngine(config)


loader: EngineLoader = engines.register(NAME)(_Loader())
