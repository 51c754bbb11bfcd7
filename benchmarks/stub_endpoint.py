"""The endpoint over a model that only sleeps: all of the serving, none of the rendering.

``benchmarks/endpoint.py`` and ``tests/faults`` deploy it; an image is a plain function of its seed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from ray.serve import Application
from torch import Tensor, nn

from safety.errors import ConfigError
from safety.families import Conditioning
from serve.app import application
from serve.config import ServeConfig, parse_config
from serve.engine import Engine, ServedModel
from serve.schema import ModelInfo

SIDE, MULTIPLE, CHANNELS = 64, 8, 3


class SleepingModel:
    """A model family whose sampling takes a set time and shows the initial noise, in blocks of 8x8 pixels."""

    default_size, size_multiple, max_tokens = SIDE, MULTIPLE, 10**6
    lora_targets: tuple[str, ...] = ()
    text_targets: tuple[str, ...] = ()
    train_timesteps = 1000

    def __init__(self, batch_s: float, image_s: float) -> None:
        """Take ``batch_s`` per batch and ``image_s`` for each of its images."""
        self.denoiser = nn.Linear(1, 1)
        self._batch_s, self._image_s = batch_s, image_s

    @property
    def device(self) -> torch.device:
        """Return the CPU."""
        return torch.device("cpu")

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Return (C, h, w) for an image size."""
        if height % MULTIPLE or width % MULTIPLE:
            raise ConfigError("not a multiple", field="size", fix=f"use a multiple of {MULTIPLE}")
        return CHANNELS, height // MULTIPLE, width // MULTIPLE

    def check_prompt(self, prompt: str) -> None:
        """Accept every prompt."""

    def encode_text(self, prompts: Sequence[str]) -> Conditioning:
        """Return empty states."""
        return {"states": torch.zeros(len(prompts), 1, 1)}

    def sample(self, _: Conditioning, noise: Tensor, **__: object) -> Tensor:
        """Sleep, and return images [B, 3, H, W] that show their noise."""
        time.sleep(self._batch_s + self._image_s * len(noise))
        return noise.repeat_interleave(MULTIPLE, 2).repeat_interleave(MULTIPLE, 3).clamp(-1, 1)


def _engine(config: ServeConfig, batch_s: float, image_s: float) -> Engine:
    models = {}
    for name in config.serve.pointers:
        info = ModelInfo(id=name, created=1, release=f"{name}-1", size=f"{SIDE}x{SIDE}", aligned=True)
        models[name] = ServedModel(info, SleepingModel(batch_s, image_s))  # type: ignore[arg-type]
    return Engine(models, config.serve)


def load_batches(config: ServeConfig) -> Engine:
    """Return an engine that takes 200 ms per batch."""
    return _engine(config, 0.2, 0.0)


def load_images(config: ServeConfig) -> Engine:
    """Return an engine that takes half a second per image."""
    return _engine(config, 0.0, 0.5)


def _build(document: Mapping[str, Any], load: Callable[[ServeConfig], Engine]) -> Application:
    config = parse_config(document)
    # There is no store to follow.
    endpoint = config.serve.model_copy(update={"reload_poll_s": None})
    return application(config.model_copy(update={"serve": endpoint}), load)


def build_batches(document: Mapping[str, Any]) -> Application:
    """Return the Serve application over ``load_batches``."""
    return _build(document, load_batches)


def build_images(document: Mapping[str, Any]) -> Application:
    """Return the Serve application over ``load_images``."""
    return _build(document, load_images)
