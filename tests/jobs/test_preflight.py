"""The preflight of a run on real Ray: each fault is reported, and all other checks still run."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cluster.preflight import checks
from cluster.preflight.check import Finding
from cluster.store.artifacts import ArtifactStore
from jobs.preflight import Preflight, report, run
from jobs.run.config import RunConfig
from jobs.trial.trial import GRID_FILE, TRIAL_FILE, TrialReport
from tests.jobs.conftest import ROOT, RunningCluster, write_run


def findings(document: dict[str, Any], folder: Path) -> dict[str, Finding]:
    return {result.name: result.finding for result in run(write_run(document, folder))}


def bad(found: dict[str, Finding]) -> dict[str, str]:
    return {name: str(finding.status) for name, finding in found.items() if str(finding.status) != "pass"}


@pytest.mark.ray
def test_a_run_with_nothing_in_its_way_passes(ray_cluster: None, pico_run: dict[str, Any], tmp_path: Path) -> None:
    found = findings(pico_run, tmp_path)
    assert bad(found) == {}
    assert set(found) == {
        *("config", "Ray", "store", "conditional writes", "nodes", "versions", "resources", "GPUs", "clocks", "disks"),
        *("store from the nodes", "upload", "proxy middlewares", "model", "judges", "features", "prompts"),
        *("memory", "method", "names", "pointers", "base model"),
    }


@pytest.mark.ray
def test_on_a_running_cluster_the_run_is_tried_out_where_its_processes_will_be(
    ray_cluster: None, pico_run: dict[str, Any], tmp_path: Path
) -> None:
    console = Console(record=True, width=250, file=(tmp_path / "log").open("w", encoding="utf-8"))
    assert report(console, write_run(pico_run, tmp_path)) == 0
    found = TrialReport.model_validate_json((tmp_path / "out" / TRIAL_FILE).read_bytes())
    assert found.facts.family == "stable-diffusion"
    assert found.judges[0].stages == ("generate", "merge", "evaluate")
    assert {each.stage: each.processes for each in found.hours}["train"] == 2
    assert (tmp_path / "out" / GRID_FILE).stat().st_size > 1000


@pytest.mark.ray
def test_a_fault_is_reported_by_its_own_check_alone(
    ray_cluster: None,
    pico_run: dict[str, Any],
    s3_store: ArtifactStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pico_run["store"] = s3_store.config.model_dump(mode="json")

    def with_(**parts: dict[str, Any]) -> dict[str, Any]:
        return {**pico_run, **{name: {**pico_run.get(name, {}), **part} for name, part in parts.items()}}

    found = findings(with_(train={"cpus_per_worker": 64.0}), tmp_path)
    assert bad(found) == {"resources": "fail"}
    assert "train: workers of one expert" in found["resources"].found
    assert bad(findings(with_(evaluate={"actors": 9}), tmp_path)) == {"resources": "warn"}
    assert bad(findings(with_(merge={"gpus_per_worker": 1.0}), tmp_path)) == {"resources": "fail", "GPUs": "fail"}
    found = findings(with_(model={"device": "cuda"}), tmp_path)
    on_workers = dict.fromkeys(
        ("model", "features", "memory"), "warn"
    )  # looked at where the device is, which is nowhere
    assert bad(found) == {"resources": "fail", "GPUs": "fail", **on_workers}
    assert "generate.gpus_per_actor" in found["resources"].fix
    found = findings({**with_(model={"device": "cuda"}), "placement": "fixed"}, tmp_path)
    assert bad(found)["config"] == "fail"
    assert "generate.gpus_per_actor" in found["config"].found
    gone = findings(with_(store={"bucket": "not-there"}), tmp_path)
    assert bad(gone) == dict.fromkeys(("store", "conditional writes", "store from the nodes", "clocks"), "fail")
    assert bad(findings(with_(cluster={"auth": "disabled"}), tmp_path)) == {"Ray": "warn"}
    with monkeypatch.context() as patch:
        patch.setattr(checks, "DISK_FAIL_GIB", 1e6)
        assert bad(findings(pico_run, tmp_path)) == {"disks": "fail"}
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")  # of this process alone: the nodes have the right one
    assert bad(findings(pico_run, tmp_path)) == dict.fromkeys(("store", "conditional writes", "clocks"), "fail")


def test_a_bad_config_is_all_that_is_looked_at(tmp_path: Path) -> None:
    document = {"run": {"name": "x", "output": "out"}, "generate": {"gruop_size": 3}}
    found = findings(document, tmp_path)
    assert bad(found) == {"config": "fail"}
    assert "did you mean 'group_size'?" in found["config"].fix


@pytest.mark.slow
def test_a_local_run_is_looked_at_without_starting_ray(pico_run: dict[str, Any], tmp_path: Path) -> None:
    pico_run["cluster"] = {"address": "local", "num_cpus": 2}
    command = [sys.executable, "-m", "jobs.preflight", "--config", str(write_run(pico_run, tmp_path))]
    started = time.monotonic()
    wide = {**os.environ, "COLUMNS": "300"}
    done = subprocess.run(command, cwd=ROOT, env=wide, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert time.monotonic() - started < 60
    assert "a local cluster of 2 CPU and 0 GPU will start" in done.stdout
    assert f"{tmp_path}/store/objects" in done.stdout


def of_ray(pico_run: RunConfig, monkeypatch: pytest.MonkeyPatch) -> Finding:
    """Return what the check of Ray finds before a local cluster is started."""
    monkeypatch.setattr("jobs.preflight.ray.is_initialized", lambda: False)
    with ExitStack() as stack:
        return Preflight(pico_run, pico_run.load_taxonomy(), stack)._reach_ray()


def test_a_home_that_cannot_be_written_is_told_and_a_proxy_is_not_in_the_way(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    local = RunConfig.model_validate({"run": {"name": "x", "output": str(tmp_path)}})
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert of_ray(local, monkeypatch).status == "pass"
    monkeypatch.setenv("HOME", "/proc/sys")
    found = of_ray(local, monkeypatch)
    assert found.status == "warn"
    assert "/proc/sys/.ray cannot be written" in found.found
    assert "HOME" in found.fix
    monkeypatch.setenv("no_proxy", "elsewhere.example")
    found = of_ray(local, monkeypatch)
    assert found.status == "fail"
    assert "proxies in the environment" in found.found


def test_a_failure_ends_with_two_and_its_cause_in_the_last_line(tmp_path: Path) -> None:
    console = Console(record=True, width=160, quiet=False, file=(tmp_path / "log").open("w"))
    assert report(console, tmp_path / "none.yaml") == 2
    last = console.export_text().strip().splitlines()[-1]
    assert last == f"config: no file {tmp_path / 'none.yaml'}. Fix: name a run's YAML, such as one of jobs/configs"


@pytest.mark.ray
@pytest.mark.slow
def test_a_cluster_that_refuses_the_token_fails_and_the_store_is_looked_at_all_the_same(
    running_cluster: RunningCluster, pico_run: dict[str, Any], tmp_path: Path
) -> None:
    pico_run["cluster"] = {"address": running_cluster.address}
    path = write_run(pico_run, tmp_path)
    good = running_cluster.driver("jobs.preflight", "--config", str(path))
    said, _ = good.communicate(timeout=120)
    assert good.returncode == 0, said
    assert "0 fail" in said
    wrong = running_cluster.driver("jobs.preflight", "--config", str(path), RAY_AUTH_TOKEN="f" * 64, COLUMNS="300")
    said, _ = wrong.communicate(timeout=120)
    assert wrong.returncode == 2, said
    lines = {line.split("│")[1].strip(): line for line in said.splitlines() if line.startswith("│")}
    assert "fail" in lines["Ray"]
    assert "refuses this user's token" in lines["Ray"]
    assert "pass" in lines["store"]
    assert "pass" in lines["conditional writes"]
    assert "not checked: Ray cannot be reached" in lines["resources"]
    assert said.splitlines()[-1].startswith("Ray: cluster.auth: the cluster at ")
