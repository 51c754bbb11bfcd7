"""Parts that small random models of several families share, and what an entry of ``PICO_MODELS`` is."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from diffusers import AutoencoderKL
from transformers import CLIPTextConfig, CLIPTokenizer

from safety.emoji.build.clip import train_tokenizer

SIZE, FACTOR = 16, 4
"""Side in pixels of the native image, and pixels to one latent, of the UNet families."""


class PicoModel(NamedTuple):
    """One model: how its folder is written, and how stock diffusers opens it."""

    family: str
    """Its name in the families' registry."""
    build: Callable[[Path], None]
    """Writes the diffusers folder."""
    stock: Callable[[Path], Any]
    """Opens the folder by its own pipeline class, with the sampler that the family draws with."""


@cache
def make_tokenizer() -> CLIPTokenizer:
    """Return a tokenizer of 32 tokens whose words are those of a few prompts, and all bytes."""
    return train_tokenizer(["a kitchen knife and a house on a blue background"], vocab_size=600)


def clip_config(tokenizer: CLIPTokenizer, width: int, **settings: Any) -> CLIPTextConfig:
    """Return the config of a small CLIP text encoder."""
    return CLIPTextConfig(
        **{
            "vocab_size": len(tokenizer),
            "hidden_size": width,
            "intermediate_size": 2 * width,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "max_position_embeddings": 32,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            **settings,
        }
    )


def open_clip_tokenizer() -> CLIPTokenizer:
    """Return the tokenizer as OpenCLIP's models have it: it pads by "!", and not by the end mark."""
    found = make_tokenizer()
    return CLIPTokenizer(
        vocab=found.get_vocab(), merges=_merges(found), model_max_length=found.model_max_length, pad_token="!"
    )


def _merges(tokenizer: CLIPTokenizer) -> list[tuple[str, str]]:
    return [(one, other) for one, other in json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]]


def make_vae(**settings: Any) -> AutoencoderKL:
    """Return a KL autoencoder of factor 4."""
    return AutoencoderKL(
        **{
            "down_block_types": ("DownEncoderBlock2D",) * 3,
            "up_block_types": ("UpDecoderBlock2D",) * 3,
            "block_out_channels": (8, 8, 16),
            "layers_per_block": 1,
            "latent_channels": 4,
            "norm_num_groups": 4,
            "sample_size": SIZE,
            "scaling_factor": 0.5,
            **settings,
        }
    )
