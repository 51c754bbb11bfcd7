"""Checkpoints: what is damaged is passed over for what is whole."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from safety.experts.checkpoint import Checkpoint, Checkpointer, FolderStore


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


@pytest.mark.parametrize("file", ["state.safetensors", "history.jsonl", "manifest.json"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "remove"])
def test_a_damaged_one_gives_way_to_the_one_before(
    keeper: Checkpointer, tmp_path: Path, file: str, damage: str
) -> None:
    path = tmp_path / "00000020" / file
    data = path.read_bytes()
    if damage == "remove":
        path.unlink()
    else:
        middle = len(data) // 2
        flipped = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
        path.write_bytes({"flip": flipped, "truncate": data[:middle], "empty": b""}[damage])
    assert_same(keeper.latest(), checkpoint(10))


def test_another_trainings_is_passed_over(keeper: Checkpointer, tmp_path: Path) -> None:
    assert Checkpointer(FolderStore(tmp_path), fingerprint="expert-2").latest() is None


def test_only_the_newest_are_kept(keeper: Checkpointer, tmp_path: Path) -> None:
    for step in (30, 40):
        keeper.save(checkpoint(step))
    assert sorted(path.parent.name for path in tmp_path.rglob("manifest.json")) == ["00000030", "00000040"]
    assert len(list(tmp_path.rglob("*.safetensors"))) == 2


def test_nothing_is_left_after_the_end(keeper: Checkpointer) -> None:
    keeper.clear()
    assert keeper.latest() is None
    assert keeper.store.names() == []


def test_no_file_is_a_pickle(keeper: Checkpointer, tmp_path: Path) -> None:
    suffixes = {path.suffix for path in tmp_path.rglob("*") if path.is_file()}
    assert suffixes == {".safetensors", ".jsonl", ".json"}
