"""Several nodes, of which one is killed in each stage: the run ends with what it would have made."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.store.artifacts import ArtifactStore
from jobs.run.artifacts import ArtifactRef, StageContext
from jobs.train.task import expert_gate, load_sets, pairs_of, plan
from safety.experts.checkpoint import Metrics
from safety.experts.curves import METRICS_FILE
from safety.experts.engine import TorchEngine
from safety.experts.expert import Expert
from safety.experts.training import ExpertTraining
from safety.families import load_model
from tests.conftest import folder_store
from tests.faults import small_run
from tests.faults.figures import Figures
from tests.faults.nodes import Job, Nodes, pico, several_nodes
from tests.faults.small_run import Made

pytestmark = [pytest.mark.nightly, pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1800)]
WORK = {
    "generate": "work/dataset/",
    "train": "work/expert/",
    "merge": "work/merge/",
    "evaluate": "work/report/",
}
"""Keys under which a stage's first finished piece of work appears."""
ON_EACH_NODE = {"actors": 2}
LONG = 16
"""Steps of an expert that is to be seen at two sizes."""


@pytest.fixture(scope="module")
def nodes(ray_cluster: None) -> Iterator[Nodes]:
    with several_nodes(2) as found:
        yield found


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> ArtifactStore:
    """The store of the small runs below: the second finds the first one's dataset."""
    return folder_store(tmp_path_factory.mktemp("store"))


def only(store: ArtifactStore, kind: str, but: str = "") -> ArtifactRef:
    [found] = set(store.ids(kind)) - {but}
    return ArtifactRef(kind, found)


def test_a_node_is_killed_in_generation_and_one_in_training(
    nodes: Nodes,
    shared: ArtifactStore,
    tiny_model_dir: Path,
    tmp_path: Path,
    undisturbed: Made,
    full: bool,
    figures: Figures,
) -> None:
    """In reduced counts ``test_an_expert_goes_on`` has one run with a node killed in generation and one in training."""
    if not full:
        pytest.skip("a run of its own: with --faults-full")
    document = small_run.document(tiny_model_dir, shared.config, tmp_path, generate=ON_EACH_NODE)
    job = Job("train", document, tmp_path / "job", nodes.cluster.address)
    for stage in ("generate", "train"):
        job.until(lambda stage=stage: bool(shared.keys(WORK[stage])), f"the first work of {stage}")
        nodes.replace()
    job.finish()
    assert_undisturbed(shared, undisturbed.dataset, undisturbed.expert, made=undisturbed)
    figures.note(
        "a node killed in generate and one in train, of 2 nodes beside the head",
        "the run finishes with what a single undisturbed node makes, byte for byte",
    )


def assert_undisturbed(store: ArtifactStore, *expected: ArtifactRef, made: Made) -> None:
    """Hold what a store has of the expected kinds to the undisturbed run's, and its work areas to be empty."""
    kinds = [artifact.kind for artifact in expected]
    found = [only(store, kind) for kind in kinds]
    assert found == list(expected)
    same = {name: sha for name, sha in made.hashes.items() if name.partition("/")[0] in kinds}
    assert small_run.hashes(store, *found) == same
    assert store.keys("work/dataset/") == store.keys("work/expert/") == []


def test_an_expert_goes_on_with_the_workers_that_are_left(
    nodes: Nodes,
    shared: ArtifactStore,
    tiny_model_dir: Path,
    tmp_path: Path,
    undisturbed: Made,
    full: bool,
    figures: Figures,
) -> None:
    expert = {**small_run.TRAIN["expert"], "steps": LONG}
    elastic = {**small_run.TRAIN, "expert": expert, "workers": 2, "min_workers": 1}
    document = small_run.document(tiny_model_dir, shared.config, tmp_path, train=elastic, generate=ON_EACH_NODE)
    job = Job("train", document, tmp_path / "job", nodes.cluster.address)
    if not full:
        job.until(lambda: bool(shared.keys(WORK["generate"])), "the first work of generate")
        nodes.replace()
    job.until(lambda: bool(shared.keys(WORK["train"])), "the first checkpoint")
    # After the loss of the driver's node, Ray Train keeps its request for nodes for another three minutes.
    nodes.kill(driving=full)
    job.finish()
    if full:
        nodes.add()
    else:
        assert_undisturbed(shared, undisturbed.dataset, made=undisturbed)
    folder = shared.fetch(*only(shared, "expert", undisturbed.expert.id), tmp_path / "expert")
    history = [json.loads(line) for line in (folder / METRICS_FILE).read_text().splitlines()]
    workers = [metrics["workers"] for metrics in history]
    assert workers == sorted(workers, reverse=True)
    assert set(workers) == {1.0, 2.0}, "it began with two and ended with one"
    assert [metrics["step"] for metrics in history] == list(range(LONG)), "no step is missing or doubled"
    context = small_run.context_of(tiny_model_dir, shared, tmp_path, train={**small_run.TRAIN, "expert": expert})
    reference = by_one_worker(context, only(shared, "dataset"))
    for name in ("loss", "winner_error", "gradient_norm"):
        expected = torch.tensor([metrics[name] for metrics in reference])
        torch.testing.assert_close(torch.tensor([m[name] for m in history]), expected, rtol=2e-2, atol=1e-4)
    figures.note(
        "elastic restart: an expert of 2 workers whose node is killed",
        f"goes on from its checkpoint with 1 worker and ends: {workers.count(2.0)} steps on 2, {workers.count(1.0)} on "
        "1, none missing or doubled; losses and gradients are those of 1 worker throughout, within 2%",
    )


def by_one_worker(context: StageContext, dataset: ArtifactRef) -> list[Metrics]:
    """Return the metrics of the same training in this process, by plain torch and never disturbed."""
    [task] = plan(context, dataset)
    torch.set_num_threads(1)
    model = load_model(task.model)
    pairs, gate = pairs_of(task, load_sets([task])), expert_gate(task)
    expert = Expert(model, pairs, task.config.expert, task.seed, 1, gate)
    return ExpertTraining(expert, TorchEngine(expert)).run().history


def hashes(store: ArtifactStore) -> dict[str, Any]:
    """Return the hashes of the datasets, adapters and of those merges that no search's order can change."""
    found: dict[str, Any] = {}
    for kind in ("dataset", "expert"):
        for name in store.ids(kind):
            files = store.verify(kind, name).files
            found[name] = {file: e.sha256 for file, e in files.items() if file.endswith((".safetensors", ".parquet"))}
    for name in store.ids("merge"):
        manifest = store.verify("merge", name)
        if manifest.config["name"] != "co-merge":
            found[name] = {
                file: entry.sha256 for file, entry in manifest.files.items() if file.endswith(".safetensors")
            }
    return found


def test_a_node_is_killed_in_each_stage_of_the_pico_run(
    nodes: Nodes, tmp_path: Path, full: bool, figures: Figures
) -> None:
    if not full:
        pytest.skip("two whole runs: with --faults-full")
    peace, store, before = folder_store(tmp_path / "peace"), folder_store(tmp_path / "store"), nodes.killed
    Job("release", pico(peace, tmp_path / "peace" / "out"), tmp_path / "peace", nodes.cluster.address).finish()
    job = Job("release", pico(store, tmp_path / "out"), tmp_path / "job", nodes.cluster.address)
    for stage, place in WORK.items():
        job.until(lambda place=place: bool(store.keys(place)), f"the first work of {stage}")
        nodes.replace()
    job.finish()
    assert hashes(store) == hashes(peace)
    assert len(store.ids("release")) == 1
    left = [key for place in ("dataset", "expert", "report") for key in store.keys(f"work/{place}/")]
    assert left == [], "no orphans"
    figures.note(
        f"a node killed in each of {', '.join(WORK)} of the pico run, on 2 nodes beside the head",
        f"{nodes.killed - before} nodes killed: finishes and releases; dataset, experts and unsearched merges are the "
        "undisturbed run's, byte for byte; no orphans",
        nodes=nodes.killed - before,
    )
