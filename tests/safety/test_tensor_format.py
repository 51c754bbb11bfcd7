"""The project's own safetensors files: what is on disk by the format's published layout, and what is refused."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from safety.errors import ArtifactFormatError
from safety.tensor_format import Head, TensorFormat, Tensors, save_tensors

FORMAT = TensorFormat(name="fruit-1", key="fruit", misfit="holds no fruit", field="basket", fix="pick some")
HEAD = {"colours": {"apple": "grün"}, "ids": ("b", "a")}
TENSORS = {"plum": torch.arange(6.0).reshape(2, 3), "apple": torch.tensor([1, 2], dtype=torch.int16)}


def both(head: Head, tensors: Tensors) -> tuple[Head, Tensors]:
    return head, tensors


def test_a_file_gives_back_its_head_and_its_tensors_in_their_dtypes(tmp_path: Path) -> None:
    path = FORMAT.write(tmp_path / "new" / "basket.safetensors", TENSORS, HEAD)
    head, tensors = FORMAT.read(path, both)
    assert head == {"format": "fruit-1", "colours": {"apple": "grün"}, "ids": ["b", "a"]}
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor)


def test_the_bytes_are_safetensors_with_the_head_as_one_text(tmp_path: Path) -> None:
    data = FORMAT.write(tmp_path / "basket.safetensors", TENSORS, HEAD).read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + length])
    assert header.keys() == {"__metadata__", "plum", "apple"}
    text = '{"colours": {"apple": "gr\\u00fcn"}, "format": "fruit-1", "ids": ["b", "a"]}'
    assert header["__metadata__"] == {"fruit": text}
    start, end = header["plum"]["data_offsets"]
    assert struct.unpack("<6f", data[8 + length + start : 8 + length + end]) == (0, 1, 2, 3, 4, 5)


def test_equal_contents_give_equal_bytes_and_leave_nothing_else_behind(tmp_path: Path) -> None:
    turned = {"apple": TENSORS["apple"], "plum": TENSORS["plum"].T.contiguous().T.requires_grad_()}
    first = FORMAT.write(tmp_path / "a", TENSORS, HEAD).read_bytes()
    assert FORMAT.write(tmp_path / "b", turned, dict(reversed(HEAD.items()))).read_bytes() == first
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b"}


def test_a_write_that_fails_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = FORMAT.write(tmp_path / "a", TENSORS, HEAD)
    before = path.read_bytes()
    with pytest.raises(TypeError):
        FORMAT.write(path, TENSORS, {"colours": object()})
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("missing", "it cannot be read"),
        ("truncated", "it cannot be read"),
        ("pickled", "it cannot be read"),
        ("headless", "its format is None"),
        ("other key", "its format is None"),
        ("other version", "its format is 'fruit-2'"),
        ("no JSON", "it cannot be read"),
        ("deep JSON", "it cannot be read"),
        ("no object", "its format is 7"),
    ],
)
def test_another_file_is_refused_with_its_name_and_the_reason(tmp_path: Path, damage: str, said: str) -> None:
    path = FORMAT.write(tmp_path / "basket.safetensors", TENSORS, HEAD)
    metadata = {"other key": {"nuts": '{"format": "fruit-1"}'}, "other version": {"fruit": '{"format": "fruit-2"}'}}
    metadata |= {
        "headless": {},
        "no JSON": {"fruit": "{"},
        "deep JSON": {"fruit": "[" * 60_000},
        "no object": {"fruit": "7"},
    }
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:-4])
    elif damage == "pickled":
        torch.save(TENSORS, path)
    else:
        save_file(TENSORS, path, metadata=metadata[damage])
    with pytest.raises(ArtifactFormatError) as caught:
        FORMAT.read(path, both)
    message = str(caught.value)
    assert message.startswith(f"basket: {path} holds no fruit: {said}")
    assert message.endswith("Fix: pick some")


def test_what_the_builder_misses_or_refuses_is_said_of_the_file(tmp_path: Path) -> None:
    path = FORMAT.write(tmp_path / "basket.safetensors", TENSORS, HEAD)
    with pytest.raises(ArtifactFormatError, match="basket.safetensors holds no fruit: it lacks 'pear'"):
        FORMAT.read(path, lambda _, tensors: tensors["pear"])
    with pytest.raises(ArtifactFormatError, match="holds no fruit: invalid literal for int"):
        FORMAT.read(path, lambda head, _: int(head["format"]))


def test_what_the_machine_refuses_to_write_is_an_error_of_the_system(tmp_path: Path) -> None:
    """The library's own error says it in words alone, and nothing that handles full disks would know it."""
    with pytest.raises(FileNotFoundError) as refused:
        save_tensors(TENSORS, tmp_path / "lost" / "basket.safetensors", {})
    assert refused.value.filename == str(tmp_path / "lost" / "basket.safetensors")
