"""Images as bytes: deterministic PNG encoding, defensive decoding, and grids for cards and reports."""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Mapping

import numpy as np
import torch
from PIL import Image, ImageOps, PngImagePlugin, UnidentifiedImageError
from torch import Tensor

from safety.errors import ImageError, ImageFault

MAX_PIXELS = 4096 * 4096
BYTES_PER_PIXEL, HEADER_BYTES = 4, 1 << 20
"""Most bytes per pixel of a legitimate file, and of its metadata; a larger file is refused before it is decoded."""
FORMATS = ("PNG", "JPEG", "WEBP")
EIGHT_BIT_MODES = ("RGB", "RGBA", "L", "LA", "P", "PA", "1", "RGBX", "La", "RGBa")
PRINT_MODES = ("CMYK", "YCCK")
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
PNG_DEPTH_AT = 24
"""Offset of the bits per channel in a PNG: its header is always the first chunk."""
MAGIC = (PNG_MAGIC, b"\xff\xd8\xff")
GRID_MARGIN = 2


def to_uint8(images: Tensor) -> Tensor:
    """Return images in [-1, 1] as uint8, rounded as diffusers' image processor rounds."""
    return (images.float() / 2 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)


def to_float(images: Tensor) -> Tensor:
    """Return uint8 images as fp32 in [-1, 1]."""
    return images.float() / 127.5 - 1.0


def encode_png(
    image: Tensor,
    metadata: Mapping[str, str] | None = None,
    size: tuple[int, int] | None = None,
    resampling: Image.Resampling = Image.Resampling.LANCZOS,
) -> bytes:
    """Return a uint8 image [3, H, W] as PNG; the same image and metadata give the same bytes.

    Args:
        image: uint8 [3, H, W].
        metadata: Text chunks, written in the keys' order.
        size: (width, height) in pixels to scale the image to; None: its own.
        resampling: How it is scaled.
    """
    chunks = PngImagePlugin.PngInfo()
    for key in sorted(metadata or {}):
        chunks.add_itxt(key, (metadata or {})[key])
    buffer = io.BytesIO()
    drawn = to_pil(image)
    shown = drawn if size in (None, drawn.size) else drawn.resize(size or drawn.size, resampling)
    shown.save(buffer, "PNG", pnginfo=chunks, compress_level=6)
    return buffer.getvalue()


def to_pil(image: Tensor) -> Image.Image:
    """Return a uint8 image [3, H, W] as a PIL image; raise ImageError for any other tensor."""
    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3:
        raise ImageError(
            f"a tensor {image.dtype} {tuple(image.shape)} is not an image", field="image", fix="give uint8 [3, H, W]"
        )
    return Image.fromarray(image.permute(1, 2, 0).contiguous().cpu().numpy())


def fit(image: Tensor, height: int, width: int) -> Tensor:
    """Return a uint8 image [3, H, W] scaled to cover ``height`` x ``width`` and cropped around its middle; of that size, itself."""
    if tuple(image.shape[1:]) == (height, width):
        return image
    fitted = ImageOps.fit(to_pil(image), (width, height), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.asarray(fitted, dtype=np.uint8).copy()).permute(2, 0, 1).contiguous()


def decode_image(data: bytes, max_pixels: int = MAX_PIXELS) -> Tensor:
    """Return an encoded image as uint8 [3, H, W].

    Grey and palette images are converted; transparency is composited on white. CMYK is refused: its colours depend on
    the printer's profile, so a conversion without it would change what the image shows.

    Args:
        data: PNG, JPEG or WebP.
        max_pixels: Larger images are refused before their pixels are decoded.

    Raises:
        ImageError: The bytes are empty, of another format, cut short, too large, CMYK, or of more than 8 bits; ``fault`` is
            the reason.
    """
    opened = _opened(data, max_pixels)
    try:
        opened.load()
        pixels = np.asarray(_on_white(opened), dtype=np.uint8)
    # Pillow's decoders raise whatever a broken header leads them to.
    except Exception as error:
        raise _unfit(ImageFault.CORRUPT, f"the image is corrupt: {error}", "fetch or create it again") from error
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).contiguous()


def _opened(data: bytes, max_pixels: int) -> Image.Image:
    """Return the image with its header read and checked, its pixels not decoded yet."""
    if not data:
        raise _unfit(ImageFault.EMPTY, "the file is empty", "give a PNG, JPEG or WebP image")
    if len(data) > max_pixels * BYTES_PER_PIXEL + HEADER_BYTES:
        raise _too_large(f"{len(data)} bytes", max_pixels)
    try:
        with warnings.catch_warnings():
            # Pillow warns of large images by a limit of its own; ours is checked below, before decoding.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            opened = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise _too_large(str(error), max_pixels) from error
    except UnidentifiedImageError as error:
        fault = ImageFault.CORRUPT if data.startswith(MAGIC) else ImageFault.UNKNOWN_FORMAT
        raise _unfit(fault, "the bytes are not an image", f"give one of: {', '.join(FORMATS)}") from error
    except Exception as error:
        message = f"the image's header is corrupt: {error}"
        raise _unfit(ImageFault.CORRUPT, message, "fetch or create it again") from error
    if opened.width * opened.height > max_pixels:
        raise _too_large(f"{opened.width}x{opened.height} pixels", max_pixels)
    if opened.mode in PRINT_MODES:
        fix = "convert it to RGB with its own colour profile"
        raise _unfit(ImageFault.PRINT_COLOURS, f"mode {opened.mode} is for print", fix)
    if opened.mode not in EIGHT_BIT_MODES or _png_depth(data) > 8:
        message = f"mode {opened.mode} has more than 8 bits"
        raise _unfit(ImageFault.TOO_DEEP, message, "convert it to 8 bits per channel")
    return opened


def _png_depth(data: bytes) -> int:
    """Return a PNG's bits per channel: Pillow silently reduces 16-bit colours to 8."""
    return data[PNG_DEPTH_AT] if data.startswith(PNG_MAGIC) and len(data) > PNG_DEPTH_AT else 8


def _too_large(what: str, max_pixels: int) -> ImageError:
    return _unfit(ImageFault.TOO_LARGE, f"the image is too large: {what}", f"give at most {max_pixels} pixels")


def _unfit(fault: ImageFault, message: str, fix: str) -> ImageError:
    return ImageError(message, field="image", fix=fix, fault=fault)


def _on_white(image: Image.Image) -> Image.Image:
    """Return the image as RGB, composited on white."""
    if "A" not in image.getbands() and "a" not in image.getbands() and "transparency" not in image.info:
        return image.convert("RGB")
    layered = image.convert("RGBA")
    white = Image.new("RGBA", layered.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, layered).convert("RGB")


def pixel_hash(image: Tensor) -> str:
    """Return the SHA-256 of an image's size and pixels, which no encoder's version can change."""
    digest = hashlib.sha256(str(tuple(image.shape)).encode())
    digest.update(image.contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()


def grid(images: Tensor, columns: int) -> Tensor:
    """Return images [N, 3, H, W] (uint8) as one image [3, H', W'] of ``columns`` columns on white."""
    if columns <= 0 or not len(images):
        raise ImageError(
            f"no grid of {len(images)} images in {columns} columns", field="grid", fix="give an image and a column"
        )
    count, _, height, width = images.shape
    rows = -(-count // columns)
    canvas = torch.full(
        (3, rows * (height + GRID_MARGIN) + GRID_MARGIN, columns * (width + GRID_MARGIN) + GRID_MARGIN),
        255,
        dtype=torch.uint8,
    )
    for index, image in enumerate(images):
        top = (index // columns) * (height + GRID_MARGIN) + GRID_MARGIN
        left = (index % columns) * (width + GRID_MARGIN) + GRID_MARGIN
        canvas[:, top : top + height, left : left + width] = image
    return canvas
