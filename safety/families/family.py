"""The protocol of a base-model family, and loading a model by its family's name."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from safety.errors import ConfigError
from safety.families.model_config import ModelConfig
from safety.families.quantised import quantise
from safety.families.source import model_folder, model_index
from safety.precision import resolve_dtype
from safety.registry import Registry
from safety.samplers import SamplerName

__all__ = [
    "Conditioning",
    "FamilyLoader",
    "ModelConfig",
    "ModelFamily",
    "Parts",
    "configured_family",
    "families",
    "family_name",
    "load_model",
    "model_folder",
]

Conditioning = dict[str, Tensor]
"""Encoded prompts, tensors with the batch first.

``states`` [B, T, D] are what attention reads; some families add ``pooled`` [B, P], one vector a prompt. What a network reads
beside the prompt and can be known from the latents, such as SDXL's sizes, is not part of it: ``predict`` adds it.
"""
Quantize = Literal["none", "int8", "nf4"]
Parts = Literal["all", "denoiser", "text"]
"""What of a model is loaded: everything, the denoiser (to train on cached latents and text states), or what encodes prompts.

The networks that are not loaded take no memory; a method that needs one of them raises ValueError.
"""


class ModelFamily(Protocol):
    """One loaded text-to-image model, behind the same interface for every family.

    Latents are [B, C, h, w] as the denoiser takes them (scaling factor applied); images are [B, 3, H, W] in
    [-1, 1]; timesteps are int64 [B].
    """

    denoiser: nn.Module
    """The network that LoRA experts adapt."""
    lora_targets: tuple[str, ...]
    """Module name suffixes that experts adapt by default."""
    text_targets: tuple[str, ...]
    """Suffixes of the linear modules that read the prompt's states alone, ``conditioning["states"]``.

    Empty where there is none, as in networks that mix prompt and image in one attention: an expert cannot be gated there.
    """
    train_timesteps: int
    """Timesteps are in [0, train_timesteps); a larger one is noisier. Flow matching counts its noise levels by them."""
    default_size: int
    """Side in pixels of the model's native square image."""
    size_multiple: int
    """Height and width must be multiples of this."""
    max_tokens: int
    """Longest prompt in tokens, begin and end marks included."""

    @property
    def device(self) -> torch.device:
        """Return the denoiser's device."""

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Return (C, h, w) for an image size; raise ConfigError when a side is not a multiple of the model's."""

    def check_prompt(self, prompt: str) -> None:
        """Raise PromptError when a prompt has more tokens than the model reads.

        An endpoint calls this from several threads while another one renders.
        """

    def encode_text(self, prompts: Sequence[str]) -> Conditioning:
        """Return the prompts' conditioning; raise PromptError for a prompt over the token limit."""

    def unconditional(self) -> Conditioning:
        """Return the conditioning [1, ...] of no prompt: what guidance leads away from, and what caption dropout trains on.

        It is the encoded empty prompt, or zeros where the model was trained with them.
        """

    def encode_images(self, images: Tensor) -> Tensor:
        """Return the latents of images (the distribution's mode, so that it is deterministic)."""

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Return the images decoded from latents, clamped to [-1, 1]."""

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return the noised latents at ``timesteps``."""

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return the training target of ``predict``: noise, velocity or flow, by the model's parametrisation."""

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """Return the denoiser's prediction [B, C, h, w], in the type that it computes in.

        The latents and the conditioning, which are stored in fp32, are turned into that type first.
        """

    def sampling(self, sampler: SamplerName | None) -> AbstractContextManager[None]:
        """Return a context in which ``sample`` uses another sampler than the family's own; None changes nothing.

        Raises:
            ConfigError: The family has no such sampler.
        """

    def sample(
        self,
        conditioning: Conditioning,
        noise: Tensor,
        *,
        steps: int,
        guidance: float,
        negative: Conditioning | None = None,
    ) -> Tensor:
        """Return images [B, 3, H, W] sampled from initial noise [B, C, h, w] (unit variance), deterministically."""


class FamilyLoader(Protocol):
    """A family as the registry holds it: which folders are its own, and how one is loaded."""

    @property
    def pipelines(self) -> tuple[str, ...]:
        """Return the diffusers classes of ``model_index.json`` that it takes where the config names no family."""

    @property
    def model_class(self) -> type[ModelFamily]:
        """Return the class of its models: what experts adapt, and what of it reads the prompt, is known before any is loaded."""

    @property
    def pipeline_class(self) -> str:
        """Return the diffusers class that draws with the family's models and experts: what users of a release open."""

    @property
    def component(self) -> str:
        """Return the part of that pipeline which experts adapt, "unet" or "transformer": their tensors' names begin with it."""

    def load(self, path: Path, *, device: str, dtype: torch.dtype, parts: Parts = "all") -> ModelFamily:
        """Load the model in ``path``, a diffusers-format folder of safetensors.

        Raises:
            ConfigError: The folder holds a model of another family.
            ArtifactFormatError: A file is missing or damaged, or a part has no safetensors.
        """


families: Registry[FamilyLoader] = Registry("base-model family", __package__)


def family_name(config: ModelConfig) -> str:
    """Return the name of the configured model's family: the one that is named, or the one of its own pipeline class.

    Nothing is loaded; a model that lies elsewhere is fetched.

    Raises:
        ConfigError: There is no such family or model, or no family takes the model's class.
        ArtifactFormatError: The model's index is damaged, or it is a single file of unknown layout.
    """
    if config.family is not None:
        families[config.family]  # raises for an unknown name
        return config.family
    pipeline = model_index(config).get("_class_name")
    for name, family in families.items():
        if pipeline in family.pipelines:
            return name
    known = sorted(each for family in families.values() for each in family.pipelines)
    raise ConfigError(
        f"{config.path} holds {'no named pipeline' if pipeline is None else f'a {pipeline}'}, which no family takes",
        field="model.path",
        fix=f"use a model of one of these classes: {', '.join(known)}; or name the family that can load it (model.family)",
    )


def configured_family(config: ModelConfig) -> FamilyLoader:
    """Return the configured model's family, of which nothing is loaded; raises as ``family_name`` does."""
    return families[family_name(config)]


def load_model(config: ModelConfig, parts: Parts = "all") -> ModelFamily:
    """Load the configured model, or the named parts of it, frozen and in evaluation mode.

    Raises:
        ConfigError: There is no such family, folder or device, or the folder is of another family.
        ArtifactFormatError: A file of the model is missing or damaged.
    """
    _require_device(config.device)
    device = torch.device(config.device)
    dtype = resolve_dtype(config.dtype, device)
    family, folder = families[family_name(config)], model_folder(config)
    if config.quantize == "none" or parts == "text":
        return family.load(folder, device=config.device, dtype=dtype, parts=parts)
    # Onto the device only when it is small.
    model: Any = family.load(folder, device="cpu", dtype=dtype, parts=parts)
    quantise(model.denoiser, config.quantize, device, dtype)
    model.pipeline.to(config.device)
    loaded: ModelFamily = model
    return loaded


def _require_device(device: str) -> None:
    """Raise ConfigError for a device that this process cannot use, before anything is read for it."""
    try:
        torch.empty(0, device=device)
    # torch asserts that it was built for the device.
    except (RuntimeError, AssertionError, ImportError, NotImplementedError) as error:
        raise ConfigError(
            f"this process cannot use {device!r}: {str(error).splitlines()[0]}",
            field="model.device",
            fix="use 'cpu', or give the stage's processes a GPU (the settings gpus_per_...) and torch a build for it",
        ) from None
