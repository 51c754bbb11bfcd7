"""An endpoint of OpenAI's chat form, as a client sees it: one request, tried again when it fails in passing."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import httpx
from pydantic import Field
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential

from safety.base import Config
from safety.errors import ConfigError, EndpointError

T = TypeVar("T")
TRANSIENT = (408, 409, 425, 429, 500, 502, 503, 504)
SHOWN = 200
"""Characters of an endpoint's message that an error shows."""
MOST_BYTES = 4 * 2**20
"""Of one answer."""


class Unusable(Exception):
    """A request that failed in passing, or an answer of no use: it is asked again."""


class ChatEndpointConfig(Config):
    """Where the endpoint is, and how long it is waited for."""

    url: str = Field(pattern=r"^https?://", description="the endpoint's base, such as http://localhost:8000/v1")
    model: str = Field(min_length=1, description="the model's name there")
    key_variable: str | None = Field(
        None, description="the environment variable that holds the key; none: no key is sent"
    )
    timeout_s: float = Field(60.0, gt=0, description="longest wait for one answer")
    attempts: int = Field(
        3, ge=1, description="how often a request is sent that fails in passing or has no usable answer"
    )


class ChatEndpoint:
    """Sends chats; it may be used by several threads."""

    def __init__(self, config: ChatEndpointConfig, field: str) -> None:
        """Read the key; nothing is asked yet.

        Args:
            config: Where it is.
            field: The setting of this config, for errors.

        Raises:
            ConfigError: The key's variable is not set.
        """
        self._config, self._field = config, field
        key = None if config.key_variable is None else os.environ.get(config.key_variable)
        if config.key_variable is not None and not key:
            raise ConfigError(
                f"the environment variable {config.key_variable} is not set",
                field=f"{field}.key_variable",
                fix="set it to the endpoint's key on every node, or leave key_variable out",
            )
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        self._client = httpx.Client(base_url=config.url.rstrip("/") + "/", timeout=config.timeout_s, headers=headers)

    def ask(self, body: Mapping[str, Any], parse: Callable[[dict[str, Any]], T]) -> T:
        """Return what ``parse`` makes of the answer's first choice.

        Args:
            body: The request without the model's name.
            parse: Takes the first of ``choices``; raises Unusable, KeyError, IndexError, TypeError or ValueError for one
                that has to be asked for again.

        Raises:
            EndpointError: The endpoint refuses the request, cannot be reached, or gave no usable answer in the attempts.
        """
        retrying = Retrying(
            stop=stop_after_attempt(self._config.attempts),
            wait=wait_exponential(0.2, max=5),
            retry=retry_if_exception_type(Unusable),
            reraise=True,
        )
        try:
            found: T = retrying(self._once, dict(body), parse)
            return found
        except Unusable as error:
            raise EndpointError(
                f"{self._config.url} gave no usable answer in {self._config.attempts} attempts: {error}",
                field=self._field,
                fix="check that the endpoint is up and what the model there answers; raise attempts or timeout_s if it is busy",
            ) from None

    def _once(self, body: dict[str, Any], parse: Callable[[dict[str, Any]], T]) -> T:
        try:
            answer = self._client.post("chat/completions", json={"model": self._config.model, **body})
        except httpx.HTTPError as error:
            raise Unusable(f"{type(error).__name__}: {error}") from None
        if answer.status_code in TRANSIENT:
            raise Unusable(f"status {answer.status_code}")
        if answer.status_code != httpx.codes.OK:
            raise EndpointError(
                f"{self._config.url} answers {answer.status_code}: {answer.text[:SHOWN]}",
                field=self._field,
                fix="check url, model and key_variable",
            )
        if len(answer.content) > MOST_BYTES:
            raise Unusable(f"an answer of {len(answer.content)} bytes")
        try:
            return parse(answer.json()["choices"][0])
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise Unusable(f"not the answer that was asked for ({type(error).__name__})") from None
