"""Sentence embeddings: the mean of the states of a text's own tokens, of length one, whatever else is in the batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from safety.errors import ConfigError
from safety.prompts.llm.embedding import EmbeddingConfig, SentenceEmbedder
from tests.support.tiny_chat import write_encoder

TEXTS = ["a kite", "a much longer text about a ball", "x", "y" * 500]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("encoder"))


def test_they_are_the_mean_over_each_texts_tokens(folder: Path) -> None:
    found = SentenceEmbedder(EmbeddingConfig(model=str(folder), batch=3)).embed(TEXTS)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    for text, vector in zip(TEXTS, found, strict=True):
        with torch.no_grad():
            states = model(**tokenizer(text, return_tensors="pt", truncation=True)).last_hidden_state[0]
        mean = states.mean(0).numpy()
        np.testing.assert_allclose(vector, mean / np.linalg.norm(mean), atol=1e-5)


def test_no_text_has_no_embedding(folder: Path) -> None:
    assert len(SentenceEmbedder(EmbeddingConfig(model=str(folder))).embed([])) == 0


def test_a_folder_without_an_encoder_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ConfigError, match="no text encoder at") as caught:
        SentenceEmbedder(EmbeddingConfig(model=str(tmp_path)))
    assert caught.value.field == "prompts.writer.embedding.model"
