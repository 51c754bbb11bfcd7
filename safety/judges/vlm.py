"""A vision-language model as a judge, behind any endpoint of OpenAI's chat form; it answers with a number per category."""

from __future__ import annotations

import base64
import json
import os
from importlib import resources
from typing import Any

import httpx
import torch
from pydantic import Field
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential
from torch import Tensor

from safety.errors import ConfigError, JudgeError
from safety.images import encode_png
from safety.judges.judge import Judge, JudgeConfig, judges
from safety.judges.scored import ScoredJudge
from safety.judges.settings import JudgeSettings, covered, read_settings
from safety.taxonomy import Taxonomy

NAME = "vlm"
INSTRUCTION = "vlm_instruction.txt"
TRANSIENT = (429, 500, 502, 503, 504)


class VlmSettings(JudgeSettings):
    """The endpoint and the model behind it."""

    url: str = Field(pattern=r"^https?://", description="the endpoint's base, such as http://localhost:8000/v1")
    model: str = Field(min_length=1, description="the model's name there; part of the judge's version")
    key_variable: str | None = Field(
        None, description="the environment variable that holds the key; none: no key is sent"
    )
    timeout_s: float = Field(60.0, gt=0, description="longest wait for one answer")
    attempts: int = Field(
        3, ge=1, description="how often a request is sent that fails in passing or has no usable answer"
    )


class _NoAnswer(Exception):
    """A request that failed in passing, or whose answer is of no use."""


class VlmJudge(ScoredJudge):
    """Asks for each image's share of harm by category."""

    def __init__(self, settings: VlmSettings, categories: tuple[str, ...], threshold: float, key: str | None) -> None:
        super().__init__(NAME, settings.model, categories, threshold, settings.batch)
        self._settings = settings
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        self._client = httpx.Client(
            base_url=settings.url.rstrip("/") + "/", timeout=settings.timeout_s, headers=headers
        )
        text = resources.files("safety.judges").joinpath(INSTRUCTION).read_text(encoding="utf-8")
        self._instruction = text.format(categories=json.dumps(list(categories)))

    def one_batch(self, images: Tensor) -> Tensor:
        """Return the endpoint's numbers, fp32 [B, K].

        Raises:
            JudgeError: The endpoint refuses, cannot be reached, or gives no usable answer in the attempts.
        """
        return torch.tensor([self._ask(encode_png(image)) for image in images])

    def _ask(self, png: bytes) -> list[float]:
        settings = self._settings
        retrying = Retrying(
            stop=stop_after_attempt(settings.attempts),
            wait=wait_exponential(0.2, max=5),
            retry=retry_if_exception_type(_NoAnswer),
            reraise=True,
        )
        try:
            found: list[float] = retrying(self._once, png)
            return found
        except _NoAnswer as error:
            raise JudgeError(
                f"the judge at {settings.url} gave no usable answer in {settings.attempts} attempts: {error}",
                field="judge.settings",
                fix="check the endpoint and the model there: it must read images and answer in JSON",
            ) from None

    def _once(self, png: bytes) -> list[float]:
        url = f"data:image/png;base64,{base64.b64encode(png).decode()}"
        content = [{"type": "text", "text": self._instruction}, {"type": "image_url", "image_url": {"url": url}}]
        body = {
            "model": self._settings.model,
            "messages": [{"role": "user", "content": content}],
            "temperature": 0,
            "response_format": {"type": "json_object"},
        }
        try:
            answer = self._client.post("chat/completions", json=body)
        except httpx.HTTPError as error:
            raise _NoAnswer(f"{type(error).__name__}: {error}") from None
        if answer.status_code in TRANSIENT:
            raise _NoAnswer(f"status {answer.status_code}")
        if answer.status_code != httpx.codes.OK:
            raise JudgeError(
                f"the judge at {self._settings.url} answers {answer.status_code}: {answer.text[:200]}",
                field="judge.settings",
                fix="check url, model and key_variable",
            )
        return self._numbers(answer)

    def _numbers(self, answer: httpx.Response) -> list[float]:
        """Return one number in [0, 1] per category; raise _NoAnswer for anything else."""
        try:
            document: Any = json.loads(answer.json()["choices"][0]["message"]["content"])
            found = [float(document[name]) for name in self.categories]
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise _NoAnswer(f"not the JSON that was asked for ({type(error).__name__})") from None
        if not all(0.0 <= number <= 1.0 for number in found):
            raise _NoAnswer("a number is outside 0 and 1")
        return found


@judges.register(NAME)
def load_vlm(config: JudgeConfig, taxonomy: Taxonomy) -> Judge:
    """Return the judge; nothing is asked yet. Raise ConfigError when its key's variable is not set."""
    settings = read_settings(VlmSettings, config)
    key = None if settings.key_variable is None else os.environ.get(settings.key_variable)
    if settings.key_variable is not None and not key:
        raise ConfigError(
            f"the environment variable {settings.key_variable} is not set",
            field="judge.settings.key_variable",
            fix="set it to the endpoint's key on every node, or leave key_variable out",
        )
    categories = covered(settings, taxonomy.categories, taxonomy)
    return VlmJudge(settings, categories, 0.5 if config.threshold is None else config.threshold, key)
