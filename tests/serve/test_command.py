"""The command that serves a release, and its old name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
def test_a_missing_config_is_named_in_one_line(tmp_path: Path) -> None:
    done = run("serve", "--config", str(tmp_path / "none.yaml"))
    assert done.returncode == 2
    assert done.stdout.startswith(f"--config: no file {tmp_path / 'none.yaml'}. Fix: ")
    assert done.stderr == ""


def test_the_old_name_gives_the_new_one() -> None:
    done = run("serve.up", "--config", "jobs/configs/emoji.yaml")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "serve.up is now: python -m serve --config FILE\n"
