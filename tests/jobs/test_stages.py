"""The stages' times against those of stand-ins that take a known time."""

from __future__ import annotations

import io
import time
from pathlib import Path

import pytest
from rich.console import Console

from cluster.store.artifacts import ArtifactStore
from jobs.run.artifacts import ArtifactRef, StageContext
from jobs.run.config import RunConfig
from jobs.stages import Stages


def stages(store: ArtifactStore, folder: Path) -> Stages:
    run = RunConfig.model_validate({"run": {"name": folder.name, "output": folder}})
    return Stages(StageContext(run, store, folder / "work", Console(file=io.StringIO())))


def test_a_stage_that_another_run_skips_reports_the_seconds_of_its_making(
    store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(_: StageContext) -> ArtifactRef:
        time.sleep(0.6)
        return ArtifactRef("dataset", "dataset-1")

    first = stages(store, tmp_path / "first")
    monkeypatch.setattr("jobs.stages.generate.run", make)
    first.dataset()
    assert 0.5 < first.seconds["generate"] < 10.0

    monkeypatch.setattr("jobs.stages.generate.run", lambda _: ArtifactRef("dataset", "dataset-1"))
    second = stages(store, tmp_path / "second")
    second.dataset()
    assert second.seconds == first.seconds

    monkeypatch.setattr("jobs.stages.generate.run", lambda _: ArtifactRef("dataset", "dataset-2"))
    other = stages(store, tmp_path / "third")
    other.dataset()
    assert other.seconds["generate"] < 0.5


def test_a_check_of_the_endpoint_that_is_not_needed_again_reports_the_seconds_of_the_one_that_was(
    store: ArtifactStore, tmp_path: Path
) -> None:
    release = ArtifactRef("release", "release-1")
    first = stages(store, tmp_path / "first")
    first.served(release, lambda: time.sleep(0.6))
    assert 0.5 < first.seconds["serve"] < 10.0
    second = stages(store, tmp_path / "second")
    second.served(release, lambda: None)
    assert second.seconds == first.seconds
