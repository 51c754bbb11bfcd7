"""The protocol of an engine: chats with a language model in, its answers out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from pydantic import Field

from safety.base import Config
from safety.registry import Registry

FIELD = "prompts.writer.engine"
"""The setting that engines' errors name."""


class Message(Config):
    """One turn of a chat."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True)
class ChatRequest:
    """A chat whose answer is a JSON object with one text."""

    messages: tuple[Message, ...]
    key: str
    """The text's name in the answer: ``{"prompt": "..."}``."""
    seed: int
    """Of the draw: an engine that samples by itself gives the same answer to the same chat and seed."""

    def schema(self) -> dict[str, Any]:
        """Return the answer's JSON schema."""
        return {
            "type": "object",
            "properties": {self.key: {"type": "string"}},
            "required": [self.key],
            "additionalProperties": False,
        }


@dataclass(frozen=True)
class ChatAnswer:
    """What a model says, as it stands."""

    text: str
    refused: bool = False
    """Whether the endpoint itself marks it as a refusal, or as stopped by its content filter."""


class ChatEngine(Protocol):
    """A language model, loaded or reachable."""

    def answer(self, requests: Sequence[ChatRequest]) -> list[ChatAnswer]:
        """Return the answers, in the requests' order.

        Raises:
            EngineError: The model cannot be asked.
        """


class EngineConfig(Config):
    """One engine. A subclass narrows ``engine`` to the literal that selects it in YAML, and adds its settings."""

    engine: str
    temperature: float = Field(0.8, gt=0, le=2, description="of sampling")
    max_new_tokens: int = Field(96, ge=8, description="tokens of an answer, its JSON among them")

    @property
    def runs_on(self) -> str:
        """Return the device that it needs: "cpu" for one that only sends requests."""
        return "cpu"

    @property
    def model_name(self) -> str:
        """Return the model's name on cards."""
        raise NotImplementedError

    def identity(self) -> str:
        """Return which model it is, by content where it can be read: part of the prompts' id.

        Raises:
            ConfigError: There is no such model.
        """
        raise NotImplementedError

    def recipe(self) -> dict[str, Any]:
        """Return the settings that the answers depend on."""
        return {**self.model_dump(mode="json"), "identity": self.identity()}


class EngineLoader(Protocol):
    """An engine as the registry holds it."""

    @property
    def config_type(self) -> type[EngineConfig]:
        """Return its config."""

    def load(self, config: Any) -> ChatEngine:
        """Return the engine, ready to be asked.

        Raises:
            ConfigError: There is no such model, or a setting does not fit it.
        """


engines: Registry[EngineLoader] = Registry("language model engine", __package__)
