"""Loading a diffusers folder as the stock pipeline of its family, or the parts of it that a process needs."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from safety.families.family import Parts
from safety.families.layout import Layout
from safety.families.network import load_part, loaded
from safety.families.weight_files import PartFiles, broken, read_json, unread_weights
from safety.quiet import no_progress_bars

logger = logging.getLogger(__name__)


def load_stock_pipeline(
    layout: Layout, files: Mapping[str, PartFiles], path: Path, dtype: torch.dtype, parts: Parts
) -> Any:
    """Return a folder's pipeline on the CPU; what lies unread beside its safetensors is named in the log.

    Args:
        layout: The family's folders.
        files: What ``layout.check`` returned for the folder.
        path: The folder.
        dtype: The type that all weights are turned into.
        parts: What is loaded; the other networks, and tokenizers without their text encoder, are None.

    Raises:
        ArtifactFormatError: A part cannot be loaded, or its parts do not fit each other.
    """
    # Slow to import, and not for processes that load no model.
    import diffusers
    import transformers

    unread = list(unread_weights(path, {file for part in files.values() for file in part.read}))
    if unread:
        logger.warning("%s: safetensors alone are read; ignored: %s", path, ", ".join(unread))
    wanted = _wanted(layout, parts)
    with no_progress_bars():
        given: dict[str, Any] = dict.fromkeys(layout.left_out)
        for name, kind in layout.networks.items():
            library = diffusers if hasattr(diffusers, kind) else transformers
            chosen = name in wanted and name in files
            given[name] = load_part(getattr(library, kind), path / name, files[name].variant, dtype) if chosen else None
        given |= {name: None for name in layout.tokenizers if parts == "denoiser" or name not in files}
        pipeline = loaded(
            lambda: getattr(diffusers, layout.pipeline_class).from_pretrained(
                path, **given, **layout.settings, local_files_only=True
            ),
            path,
        )
    _require_words(pipeline, layout, path)
    return pipeline


def vae_factor(path: Path) -> int:
    """Return the pixels of an image's side to one of its latents, by the settings of a folder's VAE."""
    return int(2 ** (len(read_json(path / "vae" / "config.json").get("block_out_channels", (0,))) - 1))


def _wanted(layout: Layout, parts: Parts) -> Iterable[str]:
    """Return the networks that are loaded."""
    if parts == "all":
        return layout.networks
    return (layout.denoiser,) if parts == "denoiser" else layout.encoders()


def _require_words(pipeline: Any, layout: Layout, path: Path) -> None:
    """Refuse a tokenizer with words that the text encoder of the same number does not know."""
    for name, encoder_name in zip(layout.tokenizers, layout.encoders(), strict=True):
        tokenizer, encoder = getattr(pipeline, name), getattr(pipeline, encoder_name)
        if tokenizer is None or encoder is None:
            continue
        words, known = len(tokenizer), encoder.config.vocab_size
        if words > known:
            raise broken(path / name, f"it has {words} words, and the text encoder knows {known}")
