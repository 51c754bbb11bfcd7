"""Checkpoints: a corrupt one is skipped for one that is whole."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from safety.experts.checkpoint import Checkpoint, Checkpointer
from tests.support.folder_store import FolderStore


def checkpoint(step: int) -> Checkpoint:
    draw = torch.Generator().manual_seed(step)
    adapter = {name: torch.randn(3, 2, generator=draw) for name in ("a.down", "a.up")}
    moments = {f"exp_avg/{name}": torch.randn(3, 2, generator=draw) for name in adapter}
    return Checkpoint(step, adapter, moments, [{"step": float(i), "loss": 1.0 / (i + 3)} for i in range(step)])


def assert_same(found: Checkpoint | None, expected: Checkpoint) -> None:
    assert found is not None
    assert (found.step, found.history) == (expected.step, expected.history)
    for one, other in ((found.adapter, expected.adapter), (found.moments, expected.moments)):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture
def keeper(tmp_path: Path) -> Checkpointer:
    keeper = Checkpointer(FolderStore(tmp_path), fingerprint="expert-1")
    for step in (10, 20):
        keeper.save(checkpoint(step))
    return keeper


def test_the_newest_comes_back_whole(keeper: Checkpointer) -> None:
    assert_same(keeper.latest(), checkpoint(20))


def test_none_is_none(tmp_path: Path) -> None:
    assert Checkpointer(FolderStore(tmp_path), fingerprint="expert-1").latest() is None


@pytest.mark.parametrize("place", [0.0, 0.02, 0.3, 0.5, 0.99], ids=["checksum", "length", "head", "middle", "end"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "remove", "swap"])
def test_a_corrupt_one_gives_way_to_the_one_before(
    keeper: Checkpointer, tmp_path: Path, place: float, damage: str
) -> None:
    path = tmp_path / "checkpoints" / "00000020.safetensors"
    data = path.read_bytes()
    if damage == "remove":
        path.unlink()
    else:
        cut = int(place * len(data))
        flipped = data[:cut] + bytes([data[cut] ^ 1]) + data[cut + 1 :]
        older = path.with_name("00000010.safetensors").read_bytes()
        path.write_bytes({"flip": flipped, "truncate": data[:cut], "empty": b"", "swap": older}[damage])
    assert_same(keeper.latest(), checkpoint(10))


def test_other_files_are_left_alone(keeper: Checkpointer, tmp_path: Path) -> None:
    for name in ("notes.txt", "checkpoints/newest.safetensors", "checkpoints/00000030.safetensors.partial"):
        (tmp_path / name).write_bytes(b"not ours")
    assert_same(keeper.latest(), checkpoint(20))
    keeper.clear()
    assert len(keeper.store.names()) == 3


@pytest.mark.parametrize("name", ["newest.txt", "30.safetensors", "000000030.safetensors"])
def test_an_unknown_key_is_named(
    keeper: Checkpointer, tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "checkpoints" / name).write_bytes(b"not ours")
    assert_same(keeper.latest(), checkpoint(20))
    assert f"checkpoints/{name} is not a checkpoint and is ignored" in caplog.text


HEAD = {"fingerprint": "expert-1", "history": "[]"}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"short",
        b"\xff" * 64,
        (2).to_bytes(8, "little") + b"[]",
        (18).to_bytes(8, "little") + b'{"__metadata__":1}',
        (60_016).to_bytes(8, "little") + b'{"__metadata__":' + b"[" * 60_000,
        save({}, metadata={"fingerprint": "expert-1"}),
        save({}, metadata={**HEAD, "history": "soon"}),
        save({}, metadata={**HEAD, "history": '{"step": 1}'}),
        save({"adapter/a": torch.ones(4)}, metadata=HEAD)[:-1],
    ],
    ids=["empty", "short", "noise", "a list", "no head", "a deep head", "no history", "no JSON", "no list", "cut"],
)
def test_one_that_is_malformed_behind_a_right_checksum_is_named_and_skipped(
    keeper: Checkpointer, data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    keeper.store.write("checkpoints/00000020.safetensors", data)
    assert_same(keeper.latest(), checkpoint(10))
    assert "the checkpoint of step 20" in caplog.text


@pytest.mark.parametrize(
    "shapes", [{"a.down": (3, 2)}, {"a.down": (3, 2), "a.up": (2, 3)}, {"a.down": (3, 2), "b": (3, 2)}]
)
def test_one_of_other_parameters_is_skipped(
    keeper: Checkpointer, shapes: dict[str, tuple[int, ...]], caplog: pytest.LogCaptureFixture
) -> None:
    wanted = {"a.down": (3, 2), "a.up": (3, 2)}
    assert_same(Checkpointer(keeper.store, "expert-1", shapes=wanted).latest(), checkpoint(20))
    assert Checkpointer(keeper.store, "expert-1", shapes=shapes).latest() is None
    assert "the checkpoint of step 20 is of other parameters" in caplog.text


def test_another_trainings_is_passed_over(keeper: Checkpointer, tmp_path: Path) -> None:
    assert Checkpointer(FolderStore(tmp_path), fingerprint="expert-2").latest() is None


def test_only_the_newest_are_kept(keeper: Checkpointer, tmp_path: Path) -> None:
    for step in (30, 40):
        keeper.save(checkpoint(step))
    assert sorted(path.stem for path in tmp_path.rglob("*.safetensors")) == ["00000030", "00000040"]
    assert len(keeper.store.names()) == 2


def test_nothing_is_left_after_the_end(keeper: Checkpointer) -> None:
    keeper.clear()
    assert keeper.latest() is None
    assert keeper.store.names() == []


def test_no_file_is_a_pickle(keeper: Checkpointer, tmp_path: Path) -> None:
    suffixes = {path.suffix for path in tmp_path.rglob("*") if path.is_file()}
    assert suffixes == {".safetensors"}
