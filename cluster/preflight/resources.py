"""Whether a cluster's nodes have room for what the stages ask for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from cluster.preflight.check import Finding, failed, passed, warned, worst
from cluster.preflight.node import Node

EPSILON = 1e-6


class ResourceRequest(NamedTuple):
    """Some equal actors, workers or replicas of a stage."""

    what: str
    """Such as "train: workers of one expert"."""
    field: str
    """The settings that ask for it."""
    each: Mapping[str, float]
    least: int
    """Without so many at once the stage can never run."""
    wanted: int


def room(each: Mapping[str, float], nodes: Sequence[Node]) -> float:
    """Return how many the nodes hold at once: one is never spread over two nodes."""
    asked = {name: amount for name, amount in each.items() if amount > 0}
    if not asked:
        return math.inf
    return sum(
        min(int(node.resources.get(name, 0.0) / amount + EPSILON) for name, amount in asked.items()) for node in nodes
    )


def check_resource_requests(resource_requests: Sequence[ResourceRequest], nodes: Sequence[Node]) -> Finding:
    """Fail for what can never run, warn of what runs with fewer at once than asked for."""
    held = ", ".join(f"{sum(node.resources.get(name, 0.0) for node in nodes):g} {name}" for name in ("CPU", "GPU"))
    return worst(
        [_check(request, nodes) for request in resource_requests],
        f"{held} on {len(nodes)} node(s): room for every stage",
    )


def _check(request: ResourceRequest, nodes: Sequence[Node]) -> Finding:
    found = room(request.each, nodes)
    asked = " and ".join(f"{amount:g} {name}" for name, amount in sorted(request.each.items()) if amount > 0)
    if found < request.least:
        return failed(
            f"{request.what}: {request.least} of {asked} needed, and there is room for {found:g}",
            f"lower {request.field}, or use a larger cluster",
        )
    if found < request.wanted:
        return warned(
            f"{request.what}: {request.wanted} of {asked} asked for, and there is room for {found:g}",
            f"lower {request.field} to what there is, or expect it to take longer",
        )
    return passed(request.what)
