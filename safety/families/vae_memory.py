"""How a VAE goes through large images: one at a time, and very large ones in tiles."""

from __future__ import annotations

from typing import Any

SLICED_PIXELS = 256 * 256
"""Images of at least so many pixels go through one at a time: a batch of them would need more memory than the denoiser."""
TILED_PIXELS = 2048 * 2048
"""Images of more pixels go through in tiles, whose seams are blended: an image differs there from one decoded whole."""


def fit_memory(vae: Any, height: int, width: int) -> None:
    """Set a VAE's slicing and tiling for images of a size in pixels; call it before it encodes or decodes them."""
    vae.use_slicing = height * width >= SLICED_PIXELS
    vae.use_tiling = height * width > TILED_PIXELS
