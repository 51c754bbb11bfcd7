"""A vision-language model as a judge, behind any endpoint of OpenAI's chat form; it answers with a number per category."""

from __future__ import annotations

import base64
import json
from importlib import resources
from typing import Any

import torch
from torch import Tensor

from safety.chat_endpoint import ChatEndpoint, ChatEndpointConfig, Unusable
from safety.images import encode_png
from safety.judges.judge import Judge, JudgeConfig, judges
from safety.judges.scored import ScoredJudge
from safety.judges.settings import JudgeSettings, covered, read_settings
from safety.taxonomy import Taxonomy

NAME = "vlm"
INSTRUCTION = "vlm_instruction.txt"


class VlmSettings(ChatEndpointConfig, JudgeSettings):
    """The endpoint and the model behind it, whose name is part of the judge's version."""


class VlmJudge(ScoredJudge):
    """Asks for each image's share of harm by category."""

    def __init__(self, settings: VlmSettings, categories: tuple[str, ...], threshold: float) -> None:
        """Nothing is asked yet; raise ConfigError when the key's variable is not set."""
        super().__init__(NAME, settings.model, categories, threshold, settings.batch)
        self._endpoint = ChatEndpoint(settings, "judge.settings")
        text = resources.files("safety.judges").joinpath(INSTRUCTION).read_text(encoding="utf-8")
        self._instruction = text.format(categories=json.dumps(list(categories)))

    def one_batch(self, images: Tensor) -> Tensor:
        """Return the endpoint's numbers, fp32 [B, K].

        Raises:
            EndpointError: The endpoint refuses, cannot be reached, or gives no usable answer in the attempts.
        """
        return torch.tensor([self._ask(encode_png(image)) for image in images])

    def _ask(self, png: bytes) -> list[float]:
        url = f"data:image/png;base64,{base64.b64encode(png).decode()}"
        content = [{"type": "text", "text": self._instruction}, {"type": "image_url", "image_url": {"url": url}}]
        body = {
            "messages": [{"role": "user", "content": content}],
            "temperature": 0,
            "response_format": {"type": "json_object"},
        }
        return self._endpoint.ask(body, self._numbers)

    def _numbers(self, choice: dict[str, Any]) -> list[float]:
        """Return one number in [0, 1] per category; raise for anything else."""
        document: Any = json.loads(choice["message"]["content"])
        found = [float(document[name]) for name in self.categories]
        if not all(0.0 <= number <= 1.0 for number in found):
            raise Unusable("a number is outside 0 and 1")
        return found


@judges.register(NAME)
def load_vlm(config: JudgeConfig, taxonomy: Taxonomy) -> Judge:
    """Return the judge; nothing is asked yet. Raise ConfigError when its key's variable is not set."""
    settings = read_settings(VlmSettings, config)
    categories = covered(settings, taxonomy.categories, taxonomy)
    return VlmJudge(settings, categories, 0.5 if config.threshold is None else config.threshold)
