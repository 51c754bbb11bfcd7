"""The whole run at its smallest, through real Ray, real S3 and the real (embedded) model, killed and run again."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from rich.console import Console

from cluster import submission
from cluster.store.artifacts import ArtifactStore
from jobs import pipeline
from jobs.pipeline import GRID_FILE, Asked, answers_of, check_endpoint, results_table, save_grid
from jobs.run.artifacts import ArtifactRef, StageContext
from jobs.run.config import load_run
from safety.images import encode_png

ROOT = Path(__file__).parent.parent.parent


def write_config(folder: Path, port: int) -> Path:
    document = yaml.safe_load((ROOT / "jobs" / "configs" / "pico.yaml").read_text())
    document["run"]["output"] = str(folder / "out")
    document["store"]["data_dir"] = str(folder / "store")
    document["cluster"]["dashboard"] = False
    document["serve"] = {"port": port}
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def start(config: Path, log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "jobs.pipeline", "--config", str(config)],
            cwd=ROOT,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )


@pytest.mark.slow
@pytest.mark.timeout(800)
def test_a_killed_run_goes_on_and_ends_with_a_report_a_release_and_images(tmp_path: Path) -> None:
    config, log = write_config(tmp_path, 8371), tmp_path / "log"
    first = start(config, log)
    deadline = time.monotonic() + 300
    while "train ──" not in log.read_text() and time.monotonic() < deadline and first.poll() is None:
        time.sleep(0.5)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert "train ──" in log.read_text(), log.read_text()[-3000:]

    second = start(config, log)
    assert second.wait(timeout=600) == 0, log.read_text()[-3000:]
    output = tmp_path / "out"
    said = log.read_text()
    assert "already published" in said
    assert "run pico is finished" in said
    metrics = json.loads((output / "metrics.json").read_text())
    assert {"base", "merged", "average", "task-arithmetic"} <= set(metrics["ip"])
    assert set(metrics["ip"]["merged"]) == {"overall", "violence", "shocking"}
    assert set(metrics["ip"]["merged"]["overall"]) >= {"value", "low", "high", "n"}
    assert {"objects_present", "clip_score", "fid", "flagged", "n"} <= set(metrics["benign"]["merged"])
    assert {"generate", "train", "merge", "evaluate", "release", "serve"} <= set(metrics["seconds"])
    assert {"config_hash", "commit", "judge", "seeds"} <= set(metrics["provenance"])
    assert (output / "endpoint.png").stat().st_size > 1000
    assert (output / "release" / "pytorch_lora_weights.safetensors").is_file()
    page = (output / "report.html").read_text()
    assert "data:image/png;base64," in page
    assert not re.search(r"""(src|href|srcset)=["']?https?:|url\(["']?https?:|@import""", page), "it loads from outside"
    assert yaml.safe_load((output / "run.yaml").read_text())["generate"]["group_size"] == 16


@pytest.mark.slow
def test_a_misspelt_key_ends_at_once_with_the_nearest(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("run: {name: x, seed: 0, output: out}\ngenerate: {gruop_size: 3}\n")
    done = subprocess.run(
        [sys.executable, "-m", "jobs.pipeline", "--config", str(path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    last = done.stdout.strip().splitlines()[-1]
    assert "generate.gruop_size" in last
    assert "did you mean 'group_size'?" in last


@pytest.mark.parametrize("submitted", [False, True])
def test_the_last_table_says_how_to_serve_that_very_run(
    submitted: bool, store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(submission.VARIABLE, raising=False)
    if submitted:
        monkeypatch.setenv(submission.VARIABLE, "{}")
    run = load_run(write_config(tmp_path, 8371))
    context = StageContext(run, store, tmp_path, Console(quiet=True))
    table = results_table(context, ArtifactRef("report", "report-1"), ArtifactRef("release", "release-1"), {})
    said = dict(zip(*(column.cells for column in table.columns), strict=True))
    assert said["release, for any diffusers pipeline"] == str(run.run.output / "release")
    if submitted:
        assert said["serve it"].startswith("serve deploy")
    else:
        command, _, config = said["serve it"].partition(" CONFIG=")
        assert command == "make serve"
        assert Path(config) == run.write(run.run.output)


def test_a_second_start_asks_the_endpoint_again_only_about_another_release(
    store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = load_run(write_config(tmp_path, 8371))
    run.run.output.mkdir()
    context = StageContext(run, store, tmp_path, Console(quiet=True))
    image = encode_png(torch.zeros(3, 8, 8, dtype=torch.uint8))
    calls: list[str] = []

    def ask(context: StageContext, dataset: ArtifactRef) -> list[Asked]:
        calls.append(dataset.id)
        return [Asked("violence", "a", image, image)]

    monkeypatch.setattr(pipeline, "ask_endpoint", ask)
    dataset, path = ArtifactRef("dataset", "dataset-1"), run.run.output / GRID_FILE
    for release, asked in (("release-1", 1), ("release-1", 1), ("release-2", 2), ("release-2", 2)):
        check_endpoint(context, dataset, ArtifactRef("release", release))
        assert len(calls) == asked
    path.write_bytes(path.read_bytes()[:-30])
    check_endpoint(context, dataset, ArtifactRef("release", "release-2"))
    assert len(calls) == 3, "a grid that is cut short is made again"


def test_a_grid_says_what_it_answers(tmp_path: Path) -> None:
    path = tmp_path / GRID_FILE
    assert answers_of(path) is None
    save_grid([], path, "abc")
    assert answers_of(path) == "abc"
    path.write_bytes(b"no image")
    assert answers_of(path) is None
