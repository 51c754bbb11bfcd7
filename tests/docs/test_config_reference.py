"""docs/config.md: what the config's models say now."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_reference_is_current() -> None:
    # A process of its own, since other tests register further choices.
    program = "from docs.config_reference import reference; print(reference(), end='')"
    ended = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert ended.stdout == (ROOT / "docs/config.md").read_text(encoding="utf-8"), "run make docs"
    for key in ("`learning_rate`", "## train.expert.objective anchored-dpo", "## serve", "`patience_s`"):
        assert key in ended.stdout
