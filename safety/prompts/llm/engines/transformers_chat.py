"""Any chat model of transformers, on this machine: weights in safetensors, or one GGUF file.

Each answer begins inside its JSON, ``{"prompt": "``, and ends at the closing quotation mark, so it is well-formed whatever
the model. A draw's randomness is its own (Gumbel-max: the largest of logits plus Gumbel noise is a draw from the softmax),
so it depends on its seed and not on what else is in the batch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, Literal

import torch
from jinja2 import TemplateError
from pydantic import Field
from torch import Tensor

from safety.errors import ConfigError
from safety.precision import DtypeName, resolve_dtype
from safety.prompts.llm.engines.engine import (
    FIELD,
    ChatAnswer,
    ChatEngine,
    ChatRequest,
    EngineConfig,
    EngineLoader,
    Message,
    engines,
)
from safety.prompts.llm.text_model import text_model_folder, text_model_hash
from safety.quiet import no_progress_bars

NAME = "transformers"
END = re.compile(r'(?<!\\)(?:\\\\)*"|\n')
"""A quotation mark that is not escaped, or a line's end, which JSON allows in no text."""
TINY = 1e-20


class TransformersConfig(EngineConfig):
    """The model, and how it samples."""

    engine: Literal["transformers"] = "transformers"
    model: str = Field(min_length=1, description="a folder that is on every node, or a hub's id")
    revision: str | None = Field(None, description="the hub's branch, tag or commit; none: main")
    gguf_file: str | None = Field(None, description="the weights' file in it, where they are GGUF and not safetensors")
    dtype: DtypeName = Field("auto", description="the numbers that the model computes in")
    device: str = Field("cpu", pattern=r"^(cpu|cuda)$", description="'cpu' or 'cuda'")
    batch: int = Field(16, ge=1, description="answers at once; on a CPU they may depend on it in the last digits")
    top_p: float = Field(0.95, gt=0, le=1, description="the likeliest tokens of this share are drawn from")

    @property
    def runs_on(self) -> str:
        """Return the device that the model is on."""
        return self.device

    @property
    def model_name(self) -> str:
        """Return the folder or id."""
        return self.model

    def identity(self) -> str:
        """Return the hash of the model's files; raise ConfigError when there is no such model."""
        folder = text_model_folder(self.model, self.revision, self.gguf_file, f"{FIELD}.model")
        return text_model_hash(folder, self.gguf_file)

    def recipe(self) -> dict[str, Any]:
        """Return the settings that the answers depend on: not what the model is called, or where it lies."""
        left_out = {"model", "revision", "gguf_file"}
        return {**self.model_dump(mode="json", exclude=left_out), "identity": self.identity()}


class _SeededDraw:
    """A logits processor: the nucleus of top_p, with Gumbel noise of each row's own generator."""

    def __init__(self, seeds: Sequence[int], temperature: float, top_p: float) -> None:
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._temperature, self._top_p = temperature, top_p

    def __call__(self, _: Tensor, scores: Tensor) -> Tensor:
        """Return noised logits fp32 [B, V], whose largest is the draw."""
        logits = scores.float() / self._temperature
        noise = torch.stack([torch.rand(logits.shape[1], generator=one) for one in self._generators])
        gumbel = -torch.log(-torch.log(noise.clamp_min(TINY)))
        return nucleus(logits, self._top_p) + gumbel.to(logits.device)


def nucleus(logits: Tensor, top_p: float) -> Tensor:
    """Return logits [B, V] without the tokens beyond the likeliest that have ``top_p`` of the probability together."""
    ordered, order = logits.softmax(-1).sort(-1, descending=True)
    beyond = ordered.cumsum(-1) - ordered >= top_p
    return logits.masked_fill(torch.zeros_like(beyond).scatter(-1, order, beyond), -torch.inf)


class TransformersEngine:
    """A chat model with its tokenizer."""

    def __init__(self, config: TransformersConfig) -> None:
        """Load the model; raise ConfigError when there is none, or it has no chat template."""
        # Slow to import, and not for processes that load no model.
        from transformers import AutoModelForCausalLM, AutoTokenizer

        field = f"{FIELD}.model"
        folder = text_model_folder(config.model, config.revision, config.gguf_file, field)
        gguf: dict[str, Any] = {} if config.gguf_file is None else {"gguf_file": config.gguf_file}
        weights = gguf or {"use_safetensors": True}
        dtype = resolve_dtype(config.dtype, torch.device(config.device))
        try:
            with no_progress_bars():
                self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, padding_side="left", **gguf)
                model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **weights)
        except ImportError as error:
            raise ConfigError(
                f"{config.model!r} needs a package that is not installed: {' '.join(str(error).split())[:200]}",
                field=field,
                fix="pip install 'safetydpo-ray[gguf]' on every node",
            ) from None
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise ConfigError(
                f"no chat model at {config.model!r}: {' '.join(str(error).split())[:200]}",
                field=field,
                fix="name a folder with a causal language model of transformers and its tokenizer",
            ) from None
        if self._tokenizer.chat_template is None:
            raise ConfigError(
                f"{config.model!r} has no chat template, so it is no chat model",
                field=field,
                fix="name an instruction-tuned model",
            )
        self._config = config
        self._model = model.to(config.device).eval().requires_grad_(False)

    def answer(self, requests: Sequence[ChatRequest]) -> list[ChatAnswer]:
        """Return the answers, ``batch`` at a time."""
        size = self._config.batch
        batches = [requests[start : start + size] for start in range(0, len(requests), size)]
        return [answer for batch in batches for answer in self._batch(batch)]

    @torch.inference_mode()
    def _batch(self, requests: Sequence[ChatRequest]) -> list[ChatAnswer]:
        # Slow to import, and not for processes that load no model.
        from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

        begun = [f'{{"{request.key}": "' for request in requests]
        chats = [self.chat(request.messages) + start for request, start in zip(requests, begun, strict=True)]
        inputs = self._tokenizer(chats, return_tensors="pt", padding=True, add_special_tokens=False)
        length = inputs.input_ids.shape[1]
        config, own = self._config, self._model.generation_config
        end = own.eos_token_id if own.eos_token_id is not None else self._tokenizer.eos_token_id
        seeds = [request.seed for request in requests]
        found: Tensor = self._model.generate(
            input_ids=inputs.input_ids.to(config.device),
            attention_mask=inputs.attention_mask.to(config.device),
            generation_config=GenerationConfig(
                max_new_tokens=config.max_new_tokens,
                do_sample=False,
                eos_token_id=end,
                pad_token_id=self._tokenizer.pad_token_id or self._tokenizer.eos_token_id,
            ),
            logits_processor=LogitsProcessorList([_SeededDraw(seeds, config.temperature, config.top_p)]),
            stopping_criteria=StoppingCriteriaList([lambda ids, _scores: self._ended(ids[:, length:])]),
        )
        return [
            ChatAnswer(_closed(start, text)) for start, text in zip(begun, self._decode(found[:, length:]), strict=True)
        ]

    def chat(self, messages: Sequence[Message]) -> str:
        """Return the chat as the model reads it, up to where its answer begins."""
        turns = [message.model_dump() for message in messages]
        try:
            return self._rendered(turns)
        except TemplateError:
            # Some templates know no system's turn.
            instruction, first, *others = turns
            merged = {"role": "user", "content": f"{instruction['content']}\n\n{first['content']}"}
            return self._rendered([merged, *others])

    def _rendered(self, turns: list[dict[str, Any]]) -> str:
        text: str = self._tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        return text

    def _decode(self, ids: Tensor) -> list[str]:
        found: list[str] = self._tokenizer.batch_decode(ids, skip_special_tokens=True)
        return found

    def _ended(self, ids: Tensor) -> Tensor:
        """Return which rows have come to their text's end, bool [B]."""
        return torch.tensor([END.search(text) is not None for text in self._decode(ids)], device=ids.device)


def _closed(start: str, text: str) -> str:
    """Return an answer's JSON: its text up to the end; as it stands where it came to none."""
    end = END.search(text)
    if end is None:
        return start + text
    # Control characters and lone backslashes, which JSON does not allow, are escaped.
    kept = text[: end.end() - 1]
    try:
        json.loads(f'"{kept}"')
    except ValueError:
        kept = json.dumps(kept)[1:-1]
    return f'{start}{kept}"}}'


class _Loader:
    config_type: type[EngineConfig] = TransformersConfig

    def load(self, config: Any) -> ChatEngine:
        return TransformersEngine(config)


loader: EngineLoader = engines.register(NAME)(_Loader())
