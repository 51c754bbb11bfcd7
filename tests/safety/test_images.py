"""Pictures as bytes, against Pillow and against files that are wrong in every known way."""

from __future__ import annotations

import io
import pickle
import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from safety.errors import ImageError, ImageFault
from safety.images import GRID_MARGIN, decode_image, encode_png, grid, pixel_hash, to_float, to_pil, to_uint8


def picture(height: int = 6, width: int = 5, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@settings(deadline=None, max_examples=30)
@given(height=st.integers(1, 40), width=st.integers(1, 40), seed=st.integers(0, 2**31))
def test_png_gives_the_pixels_back(height: int, width: int, seed: int) -> None:
    image = picture(height, width, seed)
    assert torch.equal(decode_image(encode_png(image, {"prompt": "ünïcode"})), image)


def test_png_is_deterministic_and_bears_its_metadata() -> None:
    told = {"seed": "7", "prompt": "a knife – 猫"}
    data = encode_png(picture(), told)
    assert data == encode_png(picture(), dict(reversed(told.items())))
    opened = Image.open(io.BytesIO(data))
    assert opened.text == told  # type: ignore[attr-defined]
    assert np.array_equal(np.asarray(opened), picture().permute(1, 2, 0).numpy())


def test_uint8_and_float_are_inverse_on_pixels() -> None:
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(1, 3, 16, 16)
    assert torch.equal(to_uint8(to_float(levels)), levels)
    assert to_uint8(torch.tensor([-9.0, 9.0])).tolist() == [0, 255]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "empty"),
        (b"not a picture at all", "not an image"),
        (b"\x89PNG\r\n\x1a\n" + b"\x00" * 40, "not an image|corrupt"),
        (b"GIF89a" + b"\x01\x00\x01\x00\x00\x00\x00;", "not an image"),
        (encode_png(picture(40, 40))[:-600], "corrupt"),
        (encode_png(picture(40, 40))[:20], "not an image|corrupt"),
    ],
)
def test_what_is_no_picture_is_refused_with_its_reason(data: bytes, said: str) -> None:
    with pytest.raises(ImageError, match=said):
        decode_image(data)


def test_a_flipped_byte_is_noticed() -> None:
    data = bytearray(encode_png(picture(40, 40)))
    data[len(data) // 2] ^= 0xFF
    with pytest.raises(ImageError, match="corrupt"):
        decode_image(bytes(data))


def bomb(side: int) -> bytes:
    """A PNG that claims side x side pixels and holds none."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\x00" * 100)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [5_000, 12_000, 60_000])
def test_a_decompression_bomb_is_refused_before_it_is_decoded(side: int) -> None:
    with pytest.raises(ImageError, match="too large"):
        decode_image(bomb(side))


def test_the_pixel_limit_is_the_callers() -> None:
    data = encode_png(picture(10, 10))
    assert decode_image(data, max_pixels=100).shape == (3, 10, 10)
    with pytest.raises(ImageError, match="too large: 10x10"):
        decode_image(data, max_pixels=99)


def test_other_modes_are_converted() -> None:
    grey = Image.new("L", (4, 4), 100)
    assert torch.unique(decode_image(saved(grey, "PNG"))).tolist() == [100]
    assert torch.unique(decode_image(saved(grey.convert("P"), "PNG"))).tolist() == [100]
    clear = Image.new("RGBA", (4, 4), (10, 20, 30, 0))
    assert torch.unique(decode_image(saved(clear, "PNG"))).tolist() == [255]


def test_sixteen_bits_are_refused() -> None:
    deep = Image.fromarray(np.full((4, 4), 40_000, dtype=np.uint16))
    with pytest.raises(ImageError, match="more than 8 bits"):
        decode_image(saved(deep, "PNG"))


def test_colours_of_print_are_refused() -> None:
    with pytest.raises(ImageError, match="for print") as caught:
        decode_image(saved(Image.new("CMYK", (8, 8), (0, 0, 0, 0)), "JPEG"))
    assert pickle.loads(pickle.dumps(caught.value)).fault is ImageFault.PRINT_COLOURS


@pytest.mark.parametrize("wrong", [torch.zeros(3, 4, 4), torch.zeros(4, 4, 3, dtype=torch.uint8)])
def test_only_uint8_colour_tensors_are_pictures(wrong: torch.Tensor) -> None:
    with pytest.raises(ImageError, match="is not an image"):
        to_pil(wrong)


def test_pixel_hash_sees_every_pixel_and_the_shape() -> None:
    image = picture()
    other = image.clone()
    other[2, 5, 4] ^= 1
    assert pixel_hash(image) == pixel_hash(decode_image(encode_png(image)))
    assert len({pixel_hash(i) for i in (image, other, image.reshape(3, 5, 6))}) == 3


def test_grid_puts_each_picture_in_its_place() -> None:
    images = torch.stack([picture(seed=s) for s in range(5)])
    sheet = grid(images, 2)
    assert sheet.shape == (3, 3 * (6 + GRID_MARGIN) + GRID_MARGIN, 2 * (5 + GRID_MARGIN) + GRID_MARGIN)
    for index, image in enumerate(images):
        top = GRID_MARGIN + (index // 2) * (6 + GRID_MARGIN)
        left = GRID_MARGIN + (index % 2) * (5 + GRID_MARGIN)
        assert torch.equal(sheet[:, top : top + 6, left : left + 5], image)
    assert sheet[:, :GRID_MARGIN].min() == 255
    with pytest.raises(ImageError, match="no grid"):
        grid(images, 0)
