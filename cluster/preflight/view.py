"""What the checks look at: the nodes of a cluster, running or about to be started here, and their reports."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import ray

from cluster.preflight.node import DEVICES, Node, NodeReport, UnresponsiveNode, report_here, report_nodes
from cluster.session import ClusterConfig
from cluster.store.config import StoreConfig

HERE = "this machine"
NODE_STORE_LIMITS = {"connect_timeout_s": 3.0, "read_timeout_s": 5.0, "patience_s": 1.0}
"""A node that does not reach the store must say so before it counts as silent."""


class ClusterView(NamedTuple):
    """A cluster's nodes and what they report."""

    nodes: list[Node]
    reports: list[NodeReport]
    """The driver's first."""
    silent: list[UnresponsiveNode]


def machine_view(config: ClusterConfig, folder: Path) -> ClusterView:
    """Return the local cluster that a run would start."""
    gpus = sum(1 for _ in DEVICES.glob("nvidia[0-9]*")) if config.num_gpus is None else config.num_gpus
    cpus = config.num_cpus or os.cpu_count() or 1
    resources = {"CPU": float(cpus), "GPU": float(gpus)}
    return ClusterView([Node("", HERE, resources)], [report_here(HERE, [folder], None)], [])


def running_view(folder: Path, store: StoreConfig | None, timeout_s: float) -> ClusterView:
    """Return the connected cluster.

    Args:
        folder: Where the driver writes.
        store: The store that every node must reach; None: it is not tried.
        timeout_s: The longest wait for the nodes' reports.
    """
    nodes = [Node(n["NodeID"], n["NodeManagerAddress"], dict(n["Resources"])) for n in ray.nodes() if n["Alive"]]
    quick = None if store is None else store.model_copy(update=NODE_STORE_LIMITS)
    reports, silent = report_nodes(nodes, [], quick, timeout_s)
    return ClusterView(nodes, [report_here(HERE, [folder], None), *reports], silent)
