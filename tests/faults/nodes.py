"""A cluster of several raylets on this host, whose nodes can be killed, and jobs that run on it as users run them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.cluster_utils import Cluster

from cluster.node_types import NodeType
from cluster.session import ClusterConfig, worker_environment
from cluster.store.artifacts import ArtifactStore
from tests.faults.endpoint_stub import free_port
from tests.faults.killing import wait_for

ROOT = Path(__file__).parents[2]
PICO = ROOT / "jobs" / "configs" / "pico.yaml"
# A node's death is noticed within seconds, not half a minute.
SOON = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 1000, "health_check_failure_threshold": 5}
STORE_BYTES = 100 * 2**20
JOB_LIMIT_S = 1200.0
# Workers are asked for before a node's death is noticed; Ray Train waits for these before it asks for fewer.
START_LIMIT_S = "10"


class Nodes:
    """A head without CPUs, to which the driver connects, and nodes of one CPU each."""

    def __init__(self, cluster: Cluster, count: int) -> None:
        """Add ``count`` nodes."""
        self.cluster = cluster
        self.alive: list[Any] = []
        self.killed = 0
        for _ in range(count):
            self.add()

    def add(self) -> None:
        """Bring a node up."""
        self.alive.append(self.cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES))

    def kill(self, *, driving: bool | None = None) -> None:
        """Kill a node with all its processes: one that drives a training, or does not; else the oldest."""
        fitting = [node for node in self.alive if driving is not None and _runs(node, "ray::fit") == driving]
        node = (fitting or self.alive)[0]
        self.alive.remove(node)
        self.cluster.remove_node(node, allow_graceful=False)
        self.killed += 1

    def replace(self) -> None:
        """Kill the oldest node, and bring a new one up, as an autoscaler does."""
        self.kill()
        self.add()


def _runs(node: Any, name: str) -> bool:
    raylet = node.all_processes["raylet"][0].process.pid
    children = Path(f"/proc/{raylet}/task/{raylet}/children").read_text(encoding="ascii").split()
    return any(name in Path(f"/proc/{child}/cmdline").read_text(encoding="utf-8") for child in children)


@contextmanager
def several_nodes(count: int) -> Iterator[Nodes]:
    """Run a cluster of its own beside whatever this process is connected to."""
    environment = worker_environment(ClusterConfig(address="local", num_gpus=0, auth="disabled"))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        patch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", START_LIMIT_S)
        # Ray Train asks the dashboard which trainings have lost their controllers, and frees what these had reserved.
        head = {
            "num_cpus": 0,
            "object_store_memory": STORE_BYTES,
            "_system_config": SOON,
            "include_dashboard": True,
            "dashboard_port": free_port(),
        }
        cluster = Cluster(initialize_head=True, head_node_args=head)
        try:
            yield Nodes(cluster, count)
        finally:
            cluster.shutdown()


class Job:
    """A job that runs in a process of its own, as ``python -m jobs.NAME --config FILE`` does."""

    def __init__(
        self, name: str, document: dict[str, Any], folder: Path, address: str, node_types: Sequence[NodeType] = ()
    ) -> None:
        """Start ``jobs.<name>`` on the cluster at ``address``; its words go to ``folder/log``."""
        folder.mkdir(parents=True, exist_ok=True)
        config, self.log = folder / "run.yaml", folder / "log"
        added = [kind.model_dump() for kind in node_types]
        document = {**document, "cluster": {"address": address, "auth": "disabled", "node_types": added}}
        config.write_text(yaml.safe_dump(document), encoding="utf-8")
        # The small world's writer is registered by its import.
        run = f"runpy.run_module('jobs.{name}', run_name='__main__', alter_sys=True)"
        code = f"import runpy; from tests.support import small_world; {run}"
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-c", code, "--config", str(config)],
                cwd=ROOT,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def said(self) -> str:
        """Return what the job has said so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for something that the running job brings about."""
        wait_for(lambda: condition() or self.process.poll() is not None, what, JOB_LIMIT_S)
        assert self.process.poll() is None, f"the job ended before {what}:\n{self.said()[-3000:]}"

    def finish(self) -> None:
        """Wait for the job's end; fail with its words when it failed."""
        try:
            code = self.process.wait(timeout=JOB_LIMIT_S)
        finally:
            self.process.kill()
        assert code == 0, self.said()[-5000:]


def pico(store: ArtifactStore, output: Path) -> dict[str, Any]:
    """Return the pico run with more, and smaller, pieces of work, so that there is something to interrupt."""
    document: dict[str, Any] = yaml.safe_load(PICO.read_text(encoding="utf-8"))
    document["run"]["output"] = str(output)
    document["store"] = store.config.model_dump(mode="json")
    document["generate"] |= {"group_size": 4, "actors": 2}
    document["train"]["expert"] |= {"steps": 12, "checkpoint_every": 2}
    document["merge"]["workers"] = 2
    document["evaluate"] |= {"group_size": 4, "actors": 2}
    return document
