"""A cluster on this host whose autoscaler brings nodes up when something waits for them, and none before."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import psutil
from ray.util import get_node_ip_address

from cluster.node_types import NodeType
from cluster.session import ClusterConfig, worker_environment
from tests.faults.endpoint_stub import free_port
from tests.faults.killing import wait_for
from tests.jobs.conftest import RAY
from tests.support.s3_server import die_with

HEAD = "ray.head.default"
"""The name that Ray's stand-in for a cloud gives the head."""
UNUSED = ("cluster_synced_files", "rsync_exclude", "rsync_filter", "initialization_commands", "setup_commands")
COMMANDS = ("head_setup_commands", "worker_setup_commands", "head_start_ray_commands", "worker_start_ray_commands")


@contextmanager
def from_zero(kind: NodeType, object_store: int = 100 * 2**20) -> Iterator[str]:
    """Run a head without CPUs, whose autoscaler may add nodes of one kind; yield its address.

    Ray's own ``AutoscalingCluster`` is not used: it ends every Ray of the machine when it starts.
    """
    folder = Path(tempfile.mkdtemp(prefix="raya-", dir="/tmp"))
    port, dashboard, client, agent = (free_port() for _ in range(4))
    address = f"{get_node_ip_address()}:{port}"
    (folder / "cluster.json").write_text(json.dumps(_config(kind, address, object_store)))
    command = [
        *(RAY, "start", "--head", "--block", "--num-cpus=0", f"--object-store-memory={object_store}"),
        *(f"--port={port}", f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1"),
        *(f"--ray-client-server-port={client}", f"--dashboard-agent-listen-port={agent}", f"--temp-dir={folder}"),
        f"--autoscaling-config={folder / 'cluster.json'}",
    ]
    environment = worker_environment(ClusterConfig(address="local", num_gpus=0, auth="disabled"))
    variables = {**os.environ, **environment, "RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
    with (folder / "head.log").open("wb") as log:
        head = subprocess.Popen(
            command,
            env=variables,
            cwd=folder,
            stdout=log,
            stderr=log,
            preexec_fn=partial(die_with, os.getpid()),
            start_new_session=True,
        )
    try:
        wait_for(lambda: b"Ray runtime started" in (folder / "head.log").read_bytes(), "the head", 120.0)
        yield address
    finally:
        # With its autoscaler, which would bring the nodes up again, and with no grace: nothing of it is kept.
        os.killpg(head.pid, signal.SIGKILL)
        head.wait()
        _end_processes_of(folder)
        shutil.rmtree(folder, ignore_errors=True)


def _config(kind: NodeType, address: str, object_store: int) -> dict[str, Any]:
    """Return Ray's configuration of a cluster whose nodes are processes of this host."""
    worker = {"resources": {**kind.resources, "object_store_memory": object_store}, "node_config": {}, "min_workers": 0}
    return {
        "cluster_name": "from-zero",
        "max_workers": kind.max_nodes,
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": 10,
        "provider": {"type": "fake_multinode", "gcs_address": address},
        "available_node_types": {
            "worker": {**worker, "max_workers": kind.max_nodes},
            HEAD: {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        },
        "head_node_type": HEAD,
        "file_mounts": {},
        "file_mounts_sync_continuously": False,
        "auth": {},
        "docker": {},
        **{name: [] for name in (*UNUSED, *COMMANDS)},
    }


def _end_processes_of(folder: Path) -> None:
    """End what the autoscaler has started: its nodes' processes name the cluster's folder, which is this test's alone."""
    for process in psutil.process_iter(["cmdline"]):
        if any(str(folder) in part for part in process.info["cmdline"] or ()):
            process.kill()
