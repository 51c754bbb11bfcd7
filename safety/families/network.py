"""Loading one network of a diffusers folder; whatever the libraries raise becomes an error that names the folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch

from safety.families.weight_files import broken

T = TypeVar("T")
LIBRARY_ERRORS = (OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError, ArithmeticError)
"""What diffusers, transformers and safetensors raise for settings and weights that do not make a network."""


def load_part(kind: Any, folder: Path, variant: str, dtype: torch.dtype) -> Any:
    """Load a network from safetensors.

    Args:
        kind: Its class, of diffusers or transformers.
        folder: The part's folder.
        variant: The variant of its files; empty for those without one.
        dtype: The type that the weights are turned into.

    Raises:
        ArtifactFormatError: It cannot be loaded, or its files lack a weight, which the libraries would draw at random.
    """
    network, report = loaded(
        lambda: kind.from_pretrained(
            folder,
            variant=variant or None,
            use_safetensors=True,
            dtype=dtype,
            local_files_only=True,
            output_loading_info=True,
        ),
        folder,
    )
    missing = sorted(map(str, report.get("missing_keys", ())))
    if missing:
        raise broken(folder, f"its weights lack {len(missing)} of the network's, such as {missing[0]}")
    return network


def loaded(load: Callable[[], T], folder: Path) -> T:
    """Return what ``load`` returns; raise ArtifactFormatError when the libraries cannot load a folder."""
    try:
        return load()
    except LIBRARY_ERRORS as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())
        raise broken(folder, f"it cannot be loaded ({text[:300]})") from error
