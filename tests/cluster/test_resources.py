"""What the cluster can never give is refused at once."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator

import pytest

from cluster import resources
from cluster.errors import ImpossibleResources
from cluster.node_types import NodeType, declare_node_types
from cluster.resources import describe_capacity, grown_resources, pool_size, require, this_node


@pytest.mark.ray
def test_a_gpu_that_is_not_there_is_reported_at_once(ray_cluster: None) -> None:
    started = time.monotonic()
    with pytest.raises(ImpossibleResources, match=r"train\.gpus: the cluster has 0 GPU .* asks for 1 GPU") as caught:
        require({"GPU": 1.0}, "train.gpus")
    assert time.monotonic() - started < 5
    assert caught.value.field == "train.gpus"
    assert caught.value.fix.startswith("lower train.gpus, use a cluster that has such a node, or name in cluster.node")
    require({"CPU": 2.0, "GPU": 0.0}, "train.cpus")
    require({"CPU": 0.01}, "train.cpus")
    with pytest.raises(ImpossibleResources, match="3 CPU"):
        require({"CPU": 3.0}, "train.cpus")


def node(alive: bool = True, **amounts: float) -> dict[str, object]:
    return {"Alive": alive, "Resources": amounts}


@pytest.mark.parametrize(
    ("nodes", "possible"),
    [
        ([node(CPU=8.0, GPU=1.0)], True),
        ([node(CPU=8.0), node(CPU=1.0, GPU=4.0)], False),
        ([node(CPU=8.0), node(CPU=2.0, GPU=4.0)], True),
        ([node(False, CPU=8.0, GPU=1.0), node(CPU=8.0)], False),
        ([], False),
    ],
    ids=["one node", "split over two", "the second node", "a dead node", "no node"],
)
def test_one_live_node_must_have_it_all(
    monkeypatch: pytest.MonkeyPatch, nodes: list[dict[str, object]], possible: bool
) -> None:
    monkeypatch.setattr(resources.ray, "nodes", lambda: nodes)
    if possible:
        require({"CPU": 2.0, "GPU": 1.0}, "x")
    else:
        with pytest.raises(ImpossibleResources, match="2 CPU, 1 GPU on one node"):
            require({"CPU": 2.0, "GPU": 1.0}, "x")


@pytest.fixture
def grows(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A head without CPUs whose autoscaler adds up to three nodes of eight CPUs and a GPU."""
    monkeypatch.setattr(resources.ray, "nodes", lambda: [node(memory=1.0)])
    monkeypatch.setattr(resources.ray, "cluster_resources", lambda: {"memory": 1.0})
    declare_node_types([NodeType(resources={"CPU": 8.0, "GPU": 1.0}, max_nodes=3)])
    yield
    declare_node_types([])


def test_what_an_autoscaler_can_add_is_not_refused(grows: None) -> None:
    require({"CPU": 8.0, "GPU": 1.0}, "x")
    for asked in ({"CPU": 9.0}, {"GPU": 2.0}, {"TPU": 1.0}):
        with pytest.raises(ImpossibleResources, match="x: the cluster has"):
            require(asked, "x")


def test_a_pool_begins_with_what_is_there_and_grows_with_the_cluster(
    grows: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert pool_size(100, {"CPU": 2.0, "GPU": 0.0}) == (1, 12)
    assert pool_size(100, {"CPU": 2.0, "GPU": 1.0}) == (1, 3)
    assert pool_size(5, {"CPU": 2.0}) == (1, 5)
    assert pool_size(100, {"CPU": 2.0}, {"CPU": 4.0}) == (1, 10)
    monkeypatch.setattr(resources.ray, "cluster_resources", lambda: {"CPU": 8.0, "GPU": 1.0})
    assert pool_size(100, {"CPU": 2.0}) == (4, 12), "a node that is there is one of the three"
    assert grown_resources() == {"CPU": 24.0, "GPU": 3.0}
    declare_node_types([])
    assert pool_size(100, {"CPU": 2.0}) == (4, 4)


@pytest.mark.ray
def test_a_timeout_reports_the_missing_resources(ray_cluster: None) -> None:
    assert re.fullmatch(r"free are [\d.]+ of 2 CPU on 1 node", describe_capacity())


def test_a_worker_knows_its_node(ray_cluster: None) -> None:
    import ray

    [node] = ray.nodes()
    assert ray.get(ray.remote(this_node).remote(), timeout=60) == node["NodeID"]


def test_lost_nodes_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources.ray, "is_initialized", lambda: True)
    monkeypatch.setattr(resources.ray, "nodes", lambda: [node(), node(), node(alive=False)])
    monkeypatch.setattr(resources.ray, "cluster_resources", lambda: {"CPU": 4.0, "GPU": 1.0})
    monkeypatch.setattr(resources.ray, "available_resources", lambda: {"CPU": 0.5})
    assert describe_capacity() == "free are 0.5 of 4 CPU and 0 of 1 GPU on 2 nodes, 1 lost"


def test_without_a_cluster_no_cluster_is_started_to_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources.ray, "is_initialized", lambda: False)
    assert describe_capacity() == "this process is connected to no cluster"
