"""A running cluster of its own for jobs that are submitted, and a small run for them."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from ray.util import get_node_ip_address

from tests.conftest import folder_store
from tests.faults.endpoint_stub import free_port
from tests.support.s3_server import Credentials, die_with

ROOT = Path(__file__).parent.parent.parent
RAY = str(Path(sys.executable).parent / "ray")


class RunningCluster(NamedTuple):
    """A head node that asks for a token."""

    address: str
    """The address at which a driver joins it."""
    dashboard: str
    environment: dict[str, str]
    """A user's environment variables; its nodes have the S3 server's credentials too."""

    def ray(self, *command: str, timeout: float = 240.0) -> subprocess.CompletedProcess[str]:
        """Run ``ray ...`` in the repository's root, as a user would."""
        return subprocess.run(
            [RAY, *command], cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=timeout
        )

    def driver(self, *module: str, **variables: str) -> subprocess.Popen[str]:
        """Start ``python -m ...`` on this machine, as one who joins the cluster and knows the store."""
        environment = {n: v for n, v in self.environment.items() if n != "RAY_ADDRESS"}
        environment |= {n: v for n, v in os.environ.items() if n.startswith("AWS_")}
        return subprocess.Popen(
            [sys.executable, "-m", *module],
            cwd=ROOT,
            env={**environment, "PYTHONPATH": str(ROOT), **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def get(self, path: str) -> tuple[int, Any]:
        """Return the status of the dashboard's answer, and its JSON when it is good."""
        request = urllib.request.Request(
            f"{self.dashboard}{path}", headers={"Authorization": f"Bearer {self.environment['RAY_AUTH_TOKEN']}"}
        )
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return int(answer.status), json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, None


@pytest.fixture(scope="session")
def running_cluster(s3_credentials: Credentials) -> Iterator[RunningCluster]:
    """Start a head node with token authentication, as in production, in a process that is ended by its id."""
    port, dashboard, client, agent = (free_port() for _ in range(4))
    # The user's own token must not be used, and Ray's sockets need a short path.
    folder = Path(tempfile.mkdtemp(prefix="rayt-", dir="/tmp"))
    kept = {n: v for n, v in os.environ.items() if not n.startswith(("RAY_", "DS_", "AWS_", "TUNE_"))}
    user = {
        **kept,
        "HOME": str(folder),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        "OMP_NUM_THREADS": "1",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    command = [
        *(RAY, "start", "--head", "--block", "--num-cpus=2", "--object-store-memory=200000000"),
        *(f"--port={port}", f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1"),
        *(f"--ray-client-server-port={client}", f"--dashboard-agent-listen-port={agent}", f"--temp-dir={folder}"),
    ]
    with (folder / "head.log").open("wb") as log:
        head = subprocess.Popen(
            command,
            env={**user, **s3_credentials.environment()},
            cwd=folder,
            stdout=log,
            stderr=log,
            # A test session that is killed must not leave a cluster behind.
            preexec_fn=partial(die_with, os.getpid()),
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{dashboard}"
    found = RunningCluster(f"{get_node_ip_address()}:{port}", url, {**user, "RAY_ADDRESS": url})
    try:
        wait_until_it_answers(found, head, folder / "head.log")
        yield found
    finally:
        head.send_signal(signal.SIGTERM)
        try:
            head.wait(timeout=5)
        except subprocess.TimeoutExpired:
            os.killpg(head.pid, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)


def wait_until_it_answers(cluster: RunningCluster, head: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        assert head.poll() is None, log.read_text()[-2000:]
        try:
            if cluster.get("/api/version")[0] == cluster.get("/api/jobs/")[0] == 200:
                return
        except OSError:
            pass
        time.sleep(0.3)
    pytest.fail(f"the head node does not answer: {log.read_text()[-2000:]}")


@pytest.fixture
def pico_run(tmp_path: Path) -> dict[str, Any]:
    """Return the pico run's document on an empty store; its rows are 16 groups or so."""
    document: dict[str, Any] = yaml.safe_load((ROOT / "jobs" / "configs" / "pico.yaml").read_text(encoding="utf-8"))
    document["run"] |= {"name": f"pico-{secrets.token_hex(3)}", "output": str(tmp_path / "out")}
    document["cluster"] = {"address": "auto"}
    document["store"] = folder_store(tmp_path / "store").config.model_dump(mode="json")
    document["generate"]["group_size"] = 2
    return document


def write_run(document: dict[str, Any], folder: Path) -> Path:
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    return path
