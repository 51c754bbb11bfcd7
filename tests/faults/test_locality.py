"""Several nodes with a judge each: a group of images is judged where it was rendered."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from jobs.run.config import RunConfig
from safety.dataset.plan import plan_dataset
from safety.prompts.writer import write_prompts
from tests.conftest import folder_store
from tests.faults.figures import Figures
from tests.faults.nodes import Job, pico, several_nodes

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]


def test_groups_stay_on_the_node_that_rendered_them(
    ray_cluster: None, tmp_path: Path, full: bool, figures: Figures
) -> None:
    if not full:
        pytest.skip("a cluster of its own: with --faults-full")
    store = folder_store(tmp_path / "store")
    document = pico(store, tmp_path / "out")
    # A judge that takes a share of a CPU has no place on the head, which has none.
    document["generate"] |= {"judge_actors": 2, "cpus_per_judge": 0.1, "cpus_per_actor": 0.9}
    with several_nodes(2) as nodes:
        job = Job("generate", document, tmp_path / "job", nodes.cluster.address)
        job.finish()
    moved = re.search(r"(\d+) of \d+ groups were judged on another node", job.said())
    travelled, groups = int(moved[1]) if moved else 0, count_groups(RunConfig.model_validate(document))
    assert travelled <= groups / 4, "by lot, half of them would travel"
    figures.note(
        "locality: groups of images on 2 nodes, each with a judge",
        f"{travelled} of {groups} groups were judged on another node than rendered them; by lot it would be half",
    )


def count_groups(run: RunConfig) -> int:
    """Return how many groups a run renders."""
    config = run.generate
    prompts = write_prompts(config.writer, run.load_taxonomy(), config.counts, run.run.seed)
    return len(plan_dataset(prompts, config.group_size, run.run.seed).groups)
