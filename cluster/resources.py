"""Checks that the cluster can satisfy a stage's resources, and describes its capacity when a wait times out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import ray

from cluster.errors import ClusterError, ImpossibleResources
from cluster.node_types import can_hold, node_types


def require(resources: Mapping[str, float], field: str) -> None:
    """Check one actor's or worker's resources against the nodes of the connected cluster, and those it can add.

    Args:
        resources: Needs of one actor, such as ``{"CPU": 1.0, "GPU": 1.0}``.
        field: The setting that asks for them; the error names it.

    Raises:
        ImpossibleResources: no single node has that much, whatever else runs, nor has one that an autoscaler can add.
    """
    needed = {name: amount for name, amount in resources.items() if amount > 0}
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    nodes += [kind.resources for kind in node_types()]
    if any(can_hold(node, needed) for node in nodes):
        return
    asked = ", ".join(f"{amount:g} {name}" for name, amount in sorted(needed.items()))
    most = ", ".join(f"{max((node.get(name, 0.0) for node in nodes), default=0.0):g} {name}" for name in sorted(needed))
    raise ImpossibleResources(
        f"the cluster has {most} on its largest nodes, and this asks for {asked} on one node",
        field=field,
        fix=f"lower {field}, use a cluster that has such a node, or name in cluster.node_types what its autoscaler adds",
    )


class PoolSize(NamedTuple):
    """How many processes of one kind run at once."""

    now: int
    """As many as fit on the nodes that are there, at least one."""
    most: int
    """As many as fit with all nodes that an autoscaler can add."""


def pool_size(most: int, each: Mapping[str, float], reserved: Mapping[str, float] | None = None) -> PoolSize:
    """Return how many processes the cluster holds at once, from 1 to ``most``.

    Args:
        most: As many are asked for.
        each: Ray's resources of one process.
        reserved: Resources that other processes take beside them.
    """
    now = _fitting(most, each, ray.cluster_resources(), reserved or {})
    return PoolSize(now, max(now, _fitting(most, each, grown_resources(), reserved or {})))


def grown_resources() -> dict[str, float]:
    """Return the cluster's resources with all nodes that an autoscaler can add."""
    total = dict(ray.cluster_resources())
    kinds = node_types()
    for name in {name for kind in kinds for name in kind.resources}:
        added = sum(kind.max_nodes * kind.resources.get(name, 0.0) for kind in kinds)
        # What is there may be of the named kinds, and counts once.
        total[name] = max(total.get(name, 0.0), added)
    return total


def _fitting(most: int, each: Mapping[str, float], total: Mapping[str, float], taken: Mapping[str, float]) -> int:
    held = (
        int((total.get(name, 0.0) - taken.get(name, 0.0)) / amount + 1e-6) for name, amount in each.items() if amount
    )
    return max(1, min([most, *held]))


def this_node() -> str:
    """Return the id of the node that this process runs on; empty outside of Ray."""
    return str(ray.get_runtime_context().get_node_id()) if ray.is_initialized() else ""


def timeout_error(what: str, timeout_s: float, field: str) -> ClusterError:
    """Return the error of a wait that has timed out.

    Args:
        what: The event that did not happen, such as "nothing was finished".
        timeout_s: Length of the wait.
        field: The setting that holds the limit.
    """
    return ClusterError(
        f"{what} in {timeout_s:g} s; {describe_capacity()}",
        field=field,
        fix="free or add the missing resources (the cluster's dashboard shows what waits), or allow more time",
    )


def describe_capacity() -> str:
    """Return a text of the cluster's total and free resources, for a time-out's message."""
    if not ray.is_initialized():
        return "this process is connected to no cluster"
    nodes = ray.nodes()
    alive = sum(1 for node in nodes if node["Alive"])
    total, free = ray.cluster_resources(), ray.available_resources()
    kinds = [f"{free.get(name, 0.0):g} of {total[name]:g} {name}" for name in ("CPU", "GPU") if name in total]
    lost = f", {len(nodes) - alive} lost" if len(nodes) > alive else ""
    return f"free are {' and '.join(kinds) or 'no CPUs'} on {alive} node{'' if alive == 1 else 's'}{lost}"
