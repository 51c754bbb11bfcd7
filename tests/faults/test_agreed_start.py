"""Workers that see different checkpoints go on from the same one, or not at all."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from safety.experts.checkpoint import Checkpoint, Checkpointer
from tests.support.folder_store import FolderStore

WORKER = """
import sys
from pathlib import Path
import torch
from jobs.train.worker import agreed_start
from safety.experts.checkpoint import Checkpointer
from tests.support.folder_store import FolderStore

rank, folder, meeting = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
try:
    found = agreed_start(Checkpointer(FolderStore(folder), "expert-1"), torch.device("cpu"))
    print("none" if found is None else f"{found.step} {found.adapter['a'].sum().item()}")
except Exception as error:
    print(f"{type(error).__name__}: {error}")
"""
pytestmark = pytest.mark.slow


def agreed(tmp_path: Path, folders: tuple[Path, Path]) -> list[str]:
    command = [sys.executable, "-c", WORKER]
    workers = [
        subprocess.Popen(
            [*command, str(rank), str(folder), str(tmp_path / "meeting")],
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        for rank, folder in enumerate(folders)
    ]
    return [worker.communicate(timeout=200)[0].strip() for worker in workers]


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Return two workers' views of the checkpoints of steps 10 and 20."""
    keeper = Checkpointer(FolderStore(tmp_path / "first"), "expert-1")
    for step in (10, 20):
        keeper.save(Checkpoint(step, {"a": torch.full((2,), float(step))}, {}, []))
    shutil.copytree(tmp_path / "first", tmp_path / "second")
    return tmp_path / "first", tmp_path / "second"


def test_the_first_worker_s_choice_holds(tmp_path: Path, folders: tuple[Path, Path]) -> None:
    """The newest is corrupt when the first worker reads it, and whole again when the second does."""
    (folders[0] / "checkpoints" / "00000020.safetensors").write_bytes(b"")
    assert agreed(tmp_path, folders) == ["10 20.0", "10 20.0"]


def test_who_cannot_follow_says_so(tmp_path: Path, folders: tuple[Path, Path]) -> None:
    (folders[1] / "checkpoints" / "00000020.safetensors").write_bytes(b"")
    first, second = agreed(tmp_path, folders)
    assert first == "20 40.0"
    assert second.startswith("CorruptArtifact: expert-1: the checkpoint of step 20 cannot be read by all workers")
