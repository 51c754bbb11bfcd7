"""docs/science.py: runs at a small size, and without the cluster's libraries."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from safety.images import decode_image
from safety.lora.files import LORA_FILE, load_lora

ROOT = Path(__file__).parents[2]
CLUSTER = {"ray", "cluster", "jobs", "serve"}
"""accelerate loads boto3 by itself where it is installed."""
PROGRAM = """
import runpy, sys
sys.argv = ["docs/science.py", "--output", sys.argv[1], "--pairs", "2", "--steps", "2"]
runpy.run_path("docs/science.py", run_name="__main__")
print("loaded", *sorted({name.partition(".")[0] for name in sys.modules}))
"""


@pytest.mark.slow
def test_it_trains_merges_and_renders_without_a_cluster(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert "after: " in ended.stdout
    (loaded,) = (line.split()[1:] for line in ended.stdout.splitlines() if line.startswith("loaded "))
    assert not CLUSTER & set(loaded)
    assert len(load_lora(tmp_path / LORA_FILE)) > 0
    # Two rows of six images: four unsafe prompts and two benign ones.
    assert decode_image((tmp_path / "before_after.png").read_bytes()).shape == (3, 2 * 66 + 2, 6 * 66 + 2)
