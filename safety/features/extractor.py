"""The protocol of a feature extractor, which gives FID, CMMD and CLIPScore their image and text embeddings."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import partial
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from safety.embedded import EMBEDDED_PACKAGE
from safety.errors import ConfigError
from safety.registry import Registry

FEATURE_DIGITS = 12
"""Of a checksum in the features' name."""


class FeatureExtractor(Protocol):
    """Embeds images."""

    name: str
    """The features' name in reports: network, layer and a hash of its weights."""
    dimensions: int

    def images(self, images: Tensor) -> Tensor:
        """Return fp32 [B, D] of images uint8 [B, 3, H, W]."""


@runtime_checkable
class TextFeatureExtractor(Protocol):
    """A feature extractor that embeds prompts too, in the images' space: without one there is no CLIPScore."""

    def texts(self, prompts: Sequence[str]) -> Tensor:
        """Return fp32 [B, D] of prompts."""


class FeatureLoader(Protocol):
    """A callable that loads an extractor onto a device, as the registry holds it."""

    def __call__(self, *, device: str = "cpu") -> FeatureExtractor:
        """Load the extractor."""


feature_extractors: Registry[FeatureLoader] = Registry("feature extractor", __package__, EMBEDDED_PACKAGE)


def find_loader(name: str) -> FeatureLoader:
    """Return the loader of features called ``name``, or ``name@weights``, where several models have features of one kind.

    Raises:
        ConfigError: There is no such extractor, or it reads no weights of one's own.
    """
    kind, separator, weights = name.partition("@")
    loader: Any = feature_extractors.find(kind, "evaluate.features")
    if not separator:
        found: FeatureLoader = loader
        return found
    if "weights" not in inspect.signature(loader).parameters:
        raise ConfigError(
            f"the features {kind!r} take no weights", field="evaluate.features", fix=f"write {kind!r} alone"
        )
    return partial(loader, weights=weights)


def load_features(name: str, device: str = "cpu") -> FeatureExtractor:
    """Load an extractor by its registered name or import path; raise ConfigError when there is none."""
    return find_loader(name)(device=device)


def features_name(name: str) -> str:
    """Load an extractor for the name of its features; raise ConfigError when there is none."""
    return load_features(name).name
