"""Sentence embeddings: mean-pooled states of a text encoder, of length one, whose products are cosine similarities.

As Sentence-BERT pools them: Reimers and Gurevych, https://arxiv.org/abs/1908.10084
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field

from safety.base import Config
from safety.errors import ConfigError
from safety.prompts.llm.text_model import text_model_folder, text_model_hash
from safety.quiet import no_progress_bars

FIELD = "prompts.writer.embedding.model"


class EmbeddingConfig(Config):
    """The encoder, and when two prompts say nearly the same."""

    model: str = Field(
        min_length=1, description="a folder, or a hub's id such as sentence-transformers/all-MiniLM-L6-v2"
    )
    revision: str | None = Field(None, description="the hub's branch, tag or commit; none: main")
    similar: float = Field(
        0.95,
        gt=0,
        le=1,
        description="cosine similarity from which two unsafe prompts count as one; a scale of the encoder",
    )
    device: str = Field("cpu", pattern=r"^(cpu|cuda)$", description="'cpu' or 'cuda'")
    batch: int = Field(64, ge=1)

    def recipe(self) -> dict[str, Any]:
        """Return what the similarities depend on; raise ConfigError when there is no such encoder."""
        folder = text_model_folder(self.model, self.revision, None, FIELD)
        return {"similar": self.similar, "identity": text_model_hash(folder, None)}


class SentenceEmbedder:
    """A text encoder with its tokenizer."""

    def __init__(self, config: EmbeddingConfig) -> None:
        """Load it; raise ConfigError when there is none."""
        # Slow to import, and not for processes that load no model.
        from transformers import AutoModel, AutoTokenizer

        folder = text_model_folder(config.model, config.revision, None, FIELD)
        try:
            with no_progress_bars():
                self._tokenizer: Any = AutoTokenizer.from_pretrained(folder)
                model: Any = AutoModel.from_pretrained(folder, dtype=torch.float32, use_safetensors=True)
        except (OSError, ValueError, KeyError) as error:
            raise ConfigError(
                f"no text encoder at {config.model!r}: {' '.join(str(error).split())[:200]}",
                field=FIELD,
                fix="name a folder with a text encoder of transformers and its tokenizer",
            ) from None
        self._config, self._model = config, model.to(config.device).eval().requires_grad_(False)

    @torch.inference_mode()
    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Return the texts' embeddings, fp32 [N, D] of length one."""
        size = self._config.batch
        parts = [self._batch(texts[start : start + size]) for start in range(0, len(texts), size)]
        if not parts:
            return np.zeros((0, 1), np.float32)
        return np.concatenate(parts)

    def _batch(self, texts: Sequence[str]) -> np.ndarray:
        inputs = self._tokenizer(list(texts), return_tensors="pt", padding=True, truncation=True)
        inputs = inputs.to(self._config.device)
        states = self._model(**inputs).last_hidden_state
        mask = inputs.attention_mask[..., None].to(states.dtype)
        pooled = F.normalize((states * mask).sum(1) / mask.sum(1).clamp_min(1), dim=-1)
        found: np.ndarray = pooled.float().cpu().numpy()
        return found
