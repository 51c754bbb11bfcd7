"""How many of a stage's processes fit on the nodes, against counts done by hand."""

from __future__ import annotations

import math

import pytest

from cluster.preflight.check import Status
from cluster.preflight.checks import ResourceRequest, check_resource_requests, count_fitting
from cluster.preflight.node import Node

NODES = [Node("a", "10.0.0.1", {"CPU": 8.0, "GPU": 1.0}), Node("b", "10.0.0.2", {"CPU": 3.0, "memory": 5.0})]


@pytest.mark.parametrize(
    ("each", "expected"),
    [
        ({"CPU": 1.0, "GPU": 0.0}, 11),
        ({"CPU": 2.0}, 5),
        ({"CPU": 4.0}, 2),
        ({"CPU": 0.1}, 110),
        ({"CPU": 1.0, "GPU": 0.25}, 4),
        ({"CPU": 9.0}, 0),
        ({"TPU": 1.0}, 0),
        ({"CPU": 0.0}, math.inf),
    ],
)
def test_one_is_never_spread_over_two_nodes(each: dict[str, float], expected: float) -> None:
    assert count_fitting(each, NODES) == expected


def test_what_can_never_run_fails_and_what_runs_slower_warns() -> None:
    def status(least: int, wanted: int) -> Status:
        return check_resource_requests(
            [ResourceRequest("train: workers", "train.workers", {"CPU": 4.0}, least, wanted)], NODES
        ).status

    assert status(1, 2) is Status.PASS
    assert status(1, 3) is Status.WARN
    assert status(3, 3) is Status.FAIL
    found = check_resource_requests(
        [ResourceRequest("serve: replicas", "serve.num_gpus", {"CPU": 1.0, "GPU": 2.0}, 1, 1)], NODES
    )
    assert found.found == "serve: replicas: 1 of 1 CPU and 2 GPU needed, and 0 fit"
    assert found.fix == "lower serve.num_gpus, or use a larger cluster"
