"""Jobs submitted to a running cluster that asks for a token: ``ray job submit``, its logs, ``ray job stop``."""

from __future__ import annotations

import re
import secrets
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import EXIT_USER_ERROR
from cluster.store.artifacts import ArtifactStore
from cluster.store.config import StoreConfig
from jobs.run.launch import EXIT_STOPPED, STOPPED
from tests.conftest import written
from tests.jobs.conftest import RunningCluster, write_run

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]
RUNTIME_ENV = "cluster/runtime_env.yaml"


def submit(cluster: RunningCluster, *command: str, wait: bool = True) -> tuple[str, int]:
    """Submit ``python -m ...`` and return its id and the exit code of ``ray job submit``."""
    name = f"test-{secrets.token_hex(4)}"
    options = ("--submission-id", name, "--runtime-env", RUNTIME_ENV, *(() if wait else ("--no-wait",)))
    done = cluster.ray("job", "submit", *options, "--", sys.executable, "-m", *command)
    assert f"Job '{name}' submitted" in done.stdout + done.stderr, done.stderr[-3000:]
    return name, done.returncode


def log_of(cluster: RunningCluster, name: str) -> list[str]:
    """Return the lines that the dashboard shows of a job, without those of Ray's own supervisor."""
    _, answer = cluster.get(f"/api/jobs/{name}/logs")
    lines = [line.rstrip() for line in answer["logs"].splitlines()]
    return [line for line in lines if line and "job_manager.py" not in line]


def ended(cluster: RunningCluster, name: str) -> dict[str, Any]:
    """Return the dashboard's answer on a job once it has ended."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        status, answer = cluster.get(f"/api/jobs/{name}")
        assert status == 200
        if answer["status"] not in ("PENDING", "RUNNING"):
            return dict(answer)
        time.sleep(0.3)
    pytest.fail(f"the job has not ended: {log_of(cluster, name)}")


def groups_in(store: ArtifactStore) -> list[str]:
    return [key for key in store.keys("work/") if "/groups/" in key]


def test_a_bad_config_ends_with_its_first_cause_in_the_last_line(
    running_cluster: RunningCluster, tmp_path: Path
) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("run: {name: x, seed: 0, output: out}\ngenerate: {gruop_size: 3}\n")
    name, code = submit(running_cluster, "jobs.generate", "--config", str(path))
    assert code != 0
    last = log_of(running_cluster, name)[-1]
    assert last == (f"generate.gruop_size: {path}: generate.gruop_size: unknown key. Fix: did you mean 'group_size'?")
    assert f"exit code {EXIT_USER_ERROR}" in ended(running_cluster, name)["message"]


@pytest.mark.nightly
def test_a_stopped_job_lets_go_and_goes_on_where_it_was(
    running_cluster: RunningCluster, pico_run: dict[str, Any], tmp_path: Path
) -> None:
    store = ArtifactStore(StoreConfig.model_validate(pico_run["store"]))
    path = write_run(pico_run, tmp_path)
    first, _ = submit(running_cluster, "jobs.generate", "--config", str(path), wait=False)
    deadline = time.monotonic() + 120
    while len(groups_in(store)) < 3:
        assert time.monotonic() < deadline, log_of(running_cluster, first)
        time.sleep(0.1)
    stopped = running_cluster.ray("job", "stop", first)
    assert stopped.returncode == 0, stopped.stderr
    assert ended(running_cluster, first)["status"] == "STOPPED"
    assert log_of(running_cluster, first)[-1] == STOPPED
    assert store.keys("leases/") == []
    assert store.ids("dataset") == []
    time.sleep(2.0)  # an actor may have been about to write its group
    done = groups_in(store)
    before = written(store, done)

    # The same config says "local" now: submitted, it runs on the cluster all the same.
    pico_run["cluster"] = {"address": "local", "num_cpus": 2}
    name, _ = submit(running_cluster, "jobs.generate", "--config", str(write_run(pico_run, tmp_path)), wait=False)
    seen = watch(store, done)
    status, said = ended(running_cluster, name)["status"], log_of(running_cluster, name)
    assert status == "SUCCEEDED", said
    assert seen == before, "a finished group was rebuilt"
    assert any("'local'" in line and "runs there" in line for line in said), said
    assert any(re.match(rf"{len(done)} of \d+ groups are finished already", line) for line in said), said
    assert store.keys("leases/") == []
    assert_reads_well(said)
    assert any(line.startswith(f"this job       {running_cluster.dashboard}/#/jobs/{name}") for line in said), said
    assert f"artifacts      {store.url()}" in said


def watch(store: ArtifactStore, keys: list[str]) -> dict[str, Any]:
    """Return what was last seen of the objects before the published dataset took their place."""
    seen: dict[str, Any] = {}
    deadline = time.monotonic() + 200
    while not store.ids("dataset"):
        assert time.monotonic() < deadline, "no dataset was published in time"
        try:
            seen = written(store, keys)
        except FileNotFoundError:
            assert store.ids("dataset"), "a finished group is gone before the dataset is there"
        time.sleep(0.5)
    return seen


def test_sigterm_ends_a_driver_that_joined_with_its_code_and_its_last_line(
    running_cluster: RunningCluster, pico_run: dict[str, Any], tmp_path: Path
) -> None:
    store = ArtifactStore(StoreConfig.model_validate(pico_run["store"]))
    pico_run["cluster"] = {"address": running_cluster.address}
    driver = running_cluster.driver("jobs.generate", "--config", str(write_run(pico_run, tmp_path)))
    deadline = time.monotonic() + 120
    while len(groups_in(store)) < 2 and driver.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    driver.send_signal(signal.SIGTERM)
    said, _ = driver.communicate(timeout=60)
    assert driver.returncode == EXIT_STOPPED, said
    assert said.splitlines()[-1] == STOPPED
    assert store.keys("leases/") == []


def assert_reads_well(said: list[str]) -> None:
    """Hold a log to plain lines: no control characters, no bars redrawn, nothing that other packages print."""
    assert all(line.isprintable() for line in said), said
    noise = [line for line in said if re.search(r"Warning|WARNING|Traceback|\bINFO\b", line)]
    assert noise == []
    assert len(said) < 60
