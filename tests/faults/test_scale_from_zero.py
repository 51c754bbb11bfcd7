"""A run on a cluster without a single worker: its pools and trainings ask the autoscaler for nodes, and get them."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.node_types import NodeType
from cluster.store.artifacts import ArtifactStore
from tests.conftest import folder_store
from tests.faults.autoscaling import from_zero
from tests.faults.figures import Figures
from tests.faults.nodes import Job, pico

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1500)]
KIND = NodeType(resources={"CPU": 1.0}, max_nodes=2)


def test_a_run_ends_on_a_cluster_that_has_no_worker_when_it_begins(
    tmp_path: Path, full: bool, figures: Figures
) -> None:
    if not full:
        pytest.skip("a cluster of its own: with --faults-full")
    store: ArtifactStore = folder_store(tmp_path / "store")
    document = pico(store, tmp_path / "out")
    with from_zero(KIND) as address:
        job = Job("train", document, tmp_path / "job", address, node_types=[KIND])
        job.finish()
    assert store.ids("dataset")
    assert store.ids("expert")
    figures.note("a head without CPUs, and worker nodes from zero", "generate and train end")
