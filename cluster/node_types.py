"""The kinds of nodes that a cluster's autoscaler adds when something waits for them.

Ray does not tell a driver what its autoscaler could start: a cluster of no workers looks like one that will never have
any. So a run names them in ``cluster.node_types``, unless the cluster's service reports them to Ray.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pydantic import Field

from cluster.base import Config
from cluster.ray_private import reported_node_types


class NodeType(Config):
    """One kind of node that can be added."""

    resources: dict[str, float] = Field(
        min_length=1, description="of one node, as Ray counts them, such as {CPU: 8, GPU: 1}"
    )
    max_nodes: int = Field(ge=1, description="the most nodes of this kind at once, those that are there among them")


class _Declared:
    """The node types that this process's run has named."""

    types: tuple[NodeType, ...] = ()


def declare_node_types(types: Iterable[NodeType]) -> None:
    """Make the node types known that a run's config names, for the process that drives it."""
    _Declared.types = tuple(types)


def node_types() -> tuple[NodeType, ...]:
    """Return the node types that can be added: the run's or, without any, those that the cluster has reported."""
    if _Declared.types:
        return _Declared.types
    return tuple(NodeType(resources=dict(held), max_nodes=count) for held, count in reported_node_types() if held)


def can_hold(node: Mapping[str, float], needed: Mapping[str, float]) -> bool:
    """Return whether one node's resources suffice for one process."""
    return all(node.get(name, 0.0) >= amount for name, amount in needed.items() if amount > 0)
