"""Loading one network of a diffusers folder; whatever the libraries raise becomes an error that names the folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from safety.families.weight_files import broken

T = TypeVar("T")
LIBRARY_ERRORS = (OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError, ArithmeticError)
"""What diffusers, transformers and safetensors raise for settings and weights that do not make a network."""

_weightless: ContextVar[bool] = ContextVar("weightless", default=False)


@contextmanager
def without_weights() -> Iterator[None]:
    """Have networks that load inside the context made from their settings alone, on torch's device "meta".

    They have shapes and no numbers, so that what a model needs can be found out without reading it.
    """
    token = _weightless.set(True)
    try:
        yield
    finally:
        _weightless.reset(token)


def load_part(kind: Any, folder: Path, variant: str, dtype: torch.dtype) -> Any:
    """Load a network from safetensors.

    Args:
        kind: Its class, of diffusers or transformers.
        folder: The part's folder.
        variant: The variant of its files; empty for those without one.
        dtype: The type that the weights are turned into.

    Raises:
        ArtifactFormatError: It cannot be loaded, its files lack a weight, which the libraries would draw at random, or one
            has values that are not finite.
    """
    if _weightless.get():
        return loaded(lambda: _skeleton(kind, folder, dtype), folder)
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
    # Of a weight that a list of shards names and no shard holds, diffusers says nothing, and leaves it without memory.
    empty = {name for name, tensor in network.state_dict().items() if tensor.is_meta}
    missing = sorted({*map(str, report.get("missing_keys", ())), *empty})
    if missing:
        raise broken(folder, f"its weights lack {len(missing)} of the network's, such as {missing[0]}")
    require_finite(network, folder)
    return network


def require_finite(network: nn.Module, folder: Path) -> None:
    """Raise ArtifactFormatError for a weight that is no number, or too large for the type that it was turned into."""
    for name, tensor in network.state_dict().items():
        if not tensor.is_floating_point() or tensor.numel() == 0:
            continue
        # Least and largest value in one pass, without a copy; one that is no number makes both of them none.
        if not torch.stack(torch.aminmax(tensor)).isfinite().all():
            fix = "download or save the model again; or load it in another type (model.dtype)"
            raise broken(folder, f"its tensor {name} has values that are not finite in {tensor.dtype}", fix)


def _skeleton(kind: Any, folder: Path, dtype: torch.dtype) -> Any:
    """Return a network of the folder's settings on the device "meta"."""
    with torch.device("meta"):
        if hasattr(kind, "load_config"):
            network = kind.from_config(kind.load_config(folder, local_files_only=True))
        else:
            network = kind(kind.config_class.from_pretrained(folder, local_files_only=True))
    for parameter in network.parameters():
        # Not by ``to``, which warns of layers that some networks keep in fp32.
        parameter.data = parameter.data.to(dtype)
    return network


def loaded(load: Callable[[], T], folder: Path) -> T:
    """Return what ``load`` returns; raise ArtifactFormatError when the libraries cannot load a folder."""
    try:
        return load()
    except LIBRARY_ERRORS as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())
        raise broken(folder, f"it cannot be loaded ({text[:300]})") from error
