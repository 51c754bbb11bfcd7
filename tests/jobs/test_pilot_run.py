"""A run's pilot through every stage, on small models of several families: a report, a grid, and nothing of the run's own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from cluster.store.artifacts import ArtifactStore
from cluster.store.config import StoreConfig
from cluster.store.pointer import read_pointer
from jobs.run.config import load_run
from tests.jobs.test_families import ROOT, document

LARGER = {
    "train": 30,
    "validation": 20,
    "test": 10,
    "heldout": 0,
    "benign_train": 8,
    "benign_validation": 4,
    "benign_test": 4,
}


def pilot(settings: dict[str, Any], folder: Path) -> str:
    config = folder / "run.yaml"
    config.write_text(yaml.safe_dump(settings), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "jobs.pipeline", "--config", str(config), "--pilot"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
        timeout=1800,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    return done.stdout


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(2000)
@pytest.mark.parametrize("name", ["stable-diffusion", "sdxl", "sd3", "flux-dev"])
def test_it_ends_with_a_report_and_a_grid_of_its_own(
    name: str, pico_model_dir: Callable[[str], Path], tmp_path: Path
) -> None:
    settings = document(pico_model_dir(name), tmp_path)
    settings["generate"]["counts"] = {**settings["generate"]["counts"], **LARGER}
    log = pilot(settings, tmp_path)
    assert "run family-pilot is finished" in log
    own, output = load_run(tmp_path / "run.yaml"), tmp_path / "out" / "pilot"
    filled = load_run(output / "run.yaml")
    assert filled.generate.counts.train == 20
    assert (output / "report.html").is_file()
    with Image.open(output / "endpoint.png") as grid:
        assert grid.width > grid.height / 2
    assert [path.name for path in own.run.output.iterdir()] == ["pilot"]
    store = ArtifactStore(StoreConfig(data_dir=tmp_path / "store"))
    assert read_pointer(store, "aligned-pilot") is not None
    assert read_pointer(store, own.release.pointer) is None
