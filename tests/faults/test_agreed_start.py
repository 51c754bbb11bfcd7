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

rank = int(sys.argv[1])
for case in map(Path, sys.argv[2:]):
    torch.distributed.init_process_group("gloo", init_method=f"file://{case}/meeting", rank=rank, world_size=2)
    try:
        found = agreed_start(Checkpointer(FolderStore(case / f"{rank}"), "expert-1"), torch.device("cpu"))
        print("none" if found is None else f"{found.step} {found.adapter['a'].sum().item()}")
    except Exception as error:
        print(f"{type(error).__name__}: {error}")
    torch.distributed.destroy_process_group()
"""
NEWEST = Path("checkpoints", "00000020.safetensors")
pytestmark = pytest.mark.slow


def views(case: Path) -> Path:
    """Make two workers' views of the checkpoints of steps 10 and 20, in the folders "0" and "1"."""
    keeper = Checkpointer(FolderStore(case / "0"), "expert-1")
    for step in (10, 20):
        keeper.save(Checkpoint(step, {"a": torch.full((2,), float(step))}, {}, []))
    shutil.copytree(case / "0", case / "1")
    return case


@pytest.fixture(scope="module")
def agreed(tmp_path_factory: pytest.TempPathFactory) -> list[list[str]]:
    """Return what each of two workers agrees to when the newest checkpoint is corrupt to the first, and to the second.

    The corrupt one is whole again, or not yet corrupt, when the other worker reads it.
    """
    cases = [views(tmp_path_factory.mktemp("case")) for _ in range(2)]
    for rank, case in enumerate(cases):
        (case / str(rank) / NEWEST).write_bytes(b"")
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(rank), *map(str, cases)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        for rank in range(2)
    ]
    said = [worker.communicate(timeout=200)[0].splitlines() for worker in workers]
    return [list(pair) for pair in zip(*said, strict=True)]


def test_the_first_worker_s_choice_holds(agreed: list[list[str]]) -> None:
    assert agreed[0] == ["10 20.0", "10 20.0"]


def test_who_cannot_follow_says_so(agreed: list[list[str]]) -> None:
    first, second = agreed[1]
    assert first == "20 40.0"
    assert second.startswith("CorruptArtifact: expert-1: the checkpoint of step 20 cannot be read by all workers")
