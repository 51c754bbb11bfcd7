"""A CLIP tokenizer (byte-level BPE with ``</w>``) trained on the emoji world's captions."""

from __future__ import annotations

import json
from collections.abc import Iterable

from tokenizers import pre_tokenizers, trainers
from transformers import CLIPTokenizer

START, END = "<|startoftext|>", "<|endoftext|>"
MAX_TOKENS = 32


def train_tokenizer(captions: Iterable[str], vocab_size: int = 2048) -> CLIPTokenizer:
    """Learn merges from ``captions`` and lay the vocabulary out as CLIP's: bytes, bytes at word end, merges.

    Every byte is in the vocabulary in both positions, so no text maps to the unknown token.
    """
    backend = CLIPTokenizer().backend_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[START, END],
        end_of_word_suffix="</w>",
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(captions, trainer=trainer)
    merges = [tuple(pair) for pair in json.loads(backend.to_str())["model"]["merges"]]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = dict.fromkeys([*alphabet, *(f"{a}</w>" for a in alphabet), *("".join(pair) for pair in merges)])
    vocabulary = {token: index for index, token in enumerate([*tokens, START, END])}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=MAX_TOKENS)
