"""The commands: one per job, and a former one that says what it is part of now."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_consolidate_is_part_of_merge() -> None:
    done = run("jobs.consolidate", "--config", "jobs/configs/emoji.yaml")
    assert done.returncode == 2
    assert "jobs.consolidate is now part of python -m jobs.merge" in done.stderr


def test_few_files_lie_beside_the_jobs_folders() -> None:
    assert len(list((ROOT / "jobs").glob("*.py"))) <= 6


@pytest.mark.parametrize("job", sorted(path.parent.name for path in (ROOT / "jobs").glob("*/__main__.py")))
def test_a_job_is_a_command_that_nobody_imports(job: str) -> None:
    imported = f"jobs.{job}.__main__"
    assert not [path for path in (ROOT / "jobs").rglob("*.py") if imported in path.read_text(encoding="utf-8")]
