"""Generation through real Ray Data and real S3, with a tiny random model and a judge of pixel sums."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
import yaml
from rich.console import Console

from cluster.errors import CorruptArtifact, ImpossibleResources
from cluster.session import Session
from cluster.store.artifacts import ArtifactStore
from cluster.store.config import StoreConfig
from jobs.generate import stage as generate
from jobs.generate.actors import GroupStore
from jobs.run.artifacts import ArtifactRef, StageContext, artifact_ref
from jobs.run.config import RunConfig
from jobs.run.metrics import GROUP_SECONDS, IMAGES, ROWS
from safety.dataset.record import Record
from safety.dataset.summary import DatasetSummary
from safety.errors import ConfigError
from safety.prompts.rows import BenignPrompt
from tests.conftest import written
from tests.support.no_model_here import no_model_here
from tests.support.prometheus import wait_for
from tests.support.small_world import BENIGN_ROWS, COUNTS, PAIRS, TAXONOMY

GROUP_SIZE = 8
GROUPS = 2 * (56 // GROUP_SIZE) + BENIGN_ROWS // GROUP_SIZE

DRIVER = """
import sys
import ray, yaml
from pathlib import Path
from rich.console import Console
from cluster.store.artifacts import ArtifactStore
from jobs.generate import stage as generate
from jobs.run.config import RunConfig
from jobs.run.artifacts import StageContext
from tests.support import small_world

address, config, work = sys.argv[1:]
run = RunConfig.model_validate(yaml.safe_load(Path(config).read_text()))
ray.init(address=address, log_to_driver=False)
generate.run(StageContext(run=run, store=ArtifactStore(run.store), work=Path(work), console=Console(quiet=True)))
"""


@pytest.fixture(scope="module")
def make_context(
    session: Session, tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., StageContext]:
    """Return a function that makes a run's context on a prefix of its own; settings go to ``generate``."""
    taxonomy = tmp_path_factory.mktemp("taxonomy") / "small.yaml"
    taxonomy.write_text(yaml.safe_dump(TAXONOMY.model_dump(mode="json")), encoding="utf-8")

    def make(prefix: str, *, model: dict[str, Any] | None = None, **settings: Any) -> StageContext:
        work = tmp_path_factory.mktemp("work")
        store = session.store.config.model_copy(update={"prefix": f"{session.store.config.prefix}-{prefix}"})
        document = {
            "run": {"name": f"test-{prefix}", "output": str(work / "out")},
            "store": store.model_dump(mode="json"),
            "model": {"path": str(tiny_model_dir), **(model or {})},
            "taxonomy": str(taxonomy),
            "generate": {
                "writer": "small",
                "counts": COUNTS.model_dump(),
                "render": {"steps": 2, "batch": 8},
                "judge": {"name": "tests.support.pixel_judge:load_pixel_judge"},
                "group_size": GROUP_SIZE,
                "shard_rows": 5,
                **settings,
            },
        }
        run = RunConfig.model_validate(document)
        console = Console(file=io.StringIO(), width=200)
        return StageContext(run=run, store=ArtifactStore(StoreConfig(**store.model_dump())), work=work, console=console)

    return make


def said(context: StageContext) -> str:
    assert isinstance(context.console.file, io.StringIO)
    return context.console.file.getvalue()


def summary_of(context: StageContext, ref: ArtifactRef) -> DatasetSummary:
    return DatasetSummary.model_validate_json((context.folder(ref) / "summary.json").read_bytes())


@pytest.fixture(scope="module")
def first(make_context: Callable[..., StageContext]) -> tuple[StageContext, ArtifactRef]:
    """A dataset made by one diffusion actor."""
    context = make_context("one", actors=1)
    with no_model_here():
        return context, generate.run(context)


@pytest.mark.ray
def test_one_actor_makes_a_whole_dataset(first: tuple[StageContext, ArtifactRef]) -> None:
    context, ref = first
    summary = summary_of(context, ref)
    assert summary.rows == PAIRS + BENIGN_ROWS
    assert 0 < summary.kept < summary.rows
    folder = context.folder(ref)
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert names >= {
        "data/train-00000.parquet",
        "data/validation-00000.parquet",
        "latents/violence.safetensors",
        "latents/very-shocking.safetensors",
        "prompts.parquet",
        "rejected.parquet",
        "README.md",
        "summary.json",
        "grid.png",
    }
    assert f"{summary.rows} rows in = {summary.kept} kept + {summary.rows - summary.kept} rejected" in said(context)
    assert context.store.keys("work/") == []
    assert "another node" not in said(context), "there is one node"


@pytest.mark.ray
def test_prometheus_sees_every_row_and_image(first: tuple[StageContext, ArtifactRef]) -> None:
    expected: dict[tuple[str, ...], float] = {}
    for count in summary_of(*first).counts:
        for outcome, rows in (("kept", count.kept), *count.rejected.items()):
            if rows:
                key = (count.category, str(outcome))
                expected[key] = expected.get(key, 0.0) + rows
    rows = wait_for(ROWS.exported, ("category", "outcome"), "test-one", lambda found: found == expected)
    assert rows == expected
    images = {("generate",): 2.0 * PAIRS + BENIGN_ROWS}
    assert wait_for(IMAGES.exported, ("stage",), "test-one", lambda found: found == images) == images
    groups = {("generate",): float(GROUPS)}
    seconds = f"{GROUP_SECONDS.exported}_count"
    assert wait_for(seconds, ("stage",), "test-one", lambda found: found == groups) == groups


@pytest.mark.ray
def test_a_published_dataset_is_not_made_again(first: tuple[StageContext, ArtifactRef]) -> None:
    context, ref = first
    started = time.monotonic()
    assert generate.run(context) == ref
    assert "already published and verified" in said(context)
    assert time.monotonic() - started < 60
    assert context.store.keys("work/") == []


@pytest.mark.ray
def test_a_killed_run_goes_on_where_it_was_and_two_actors_make_the_same_rows(
    make_context: Callable[..., StageContext],
    first: tuple[StageContext, ArtifactRef],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    context = make_context("two", actors=2, judge={"name": "tests.support.pixel_judge:load_slow_judge"})
    kill_after_some_groups(context, tmp_path)
    done = context.store.keys("work/")
    groups = sorted(key for key in done if "/groups/" in key)
    assert 0 < len(groups) < GROUPS
    # One of the finished groups is corrupt; the others must not be touched.
    corrupt = groups.pop(0)
    context.store.write(corrupt, b"PAR1 and then nothing")
    before = written(context.store, groups)

    monkeypatch.setattr(GroupStore, "clear", lambda self: None)
    ref = generate.run(context)
    after = [key for key in context.store.keys("work/") if "/groups/" in key]
    assert len(after) == GROUPS
    assert corrupt in after
    assert written(context.store, groups) == before
    assert f"{len(groups)} of {GROUPS} groups are finished already" in said(context)
    one_context, one_ref = first
    assert ref != one_ref
    assert summary_of(context, ref).dataset_hash == summary_of(one_context, one_ref).dataset_hash


def kill_after_some_groups(context: StageContext, folder: Path) -> None:
    """Run the job in a process of its own and kill it when a few groups are in the store."""
    config = folder / "run.yaml"
    config.write_text(yaml.safe_dump(context.run.model_dump(mode="json")), encoding="utf-8")
    address = ray.get_runtime_context().gcs_address
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, address, str(config), str(folder / "work")],
        env={**os.environ, "PYTHONPATH": str(Path(generate.__file__).parents[2])},
    )
    try:
        while len([key for key in context.store.keys("work/") if "/groups/" in key]) < 3:
            assert driver.poll() is None, "the driver ended by itself"
            time.sleep(0.05)
    finally:
        driver.kill()
        driver.wait()


@pytest.mark.ray
def test_an_actors_failure_is_reported_by_its_first_cause(make_context: Callable[..., StageContext]) -> None:
    context = make_context("wrong", actors=1, render={"steps": 2, "height": 15})
    with pytest.raises(ConfigError, match="height: 15 is not a positive multiple of 4"):
        generate.run(context)


@pytest.mark.ray
@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"gpus_per_actor": 1.0}, "generate.gpus_per_actor"),
        ({"cpus_per_actor": 64.0}, "generate.cpus_per_actor"),
        ({"cpus_per_judge": 64.0}, "generate.cpus_per_judge"),
    ],
)
def test_impossible_resources_are_refused_at_once(
    make_context: Callable[..., StageContext], settings: dict[str, float], field: str
) -> None:
    started = time.monotonic()
    with pytest.raises(ImpossibleResources, match=field):
        generate.run(make_context("impossible", **settings))
    assert time.monotonic() - started < 30


@pytest.mark.ray
def test_a_model_on_a_gpu_needs_actors_with_one(make_context: Callable[..., StageContext]) -> None:
    with pytest.raises(ConfigError, match=r"generate\.gpus_per_actor: the model is on 'cuda'"):
        generate.run(make_context("cuda", model={"device": "cuda"}))


def test_where_the_work_runs_does_not_name_the_dataset(make_context: Callable[..., StageContext]) -> None:
    def name(**settings: Any) -> str:
        context = make_context("names", **settings)
        taxonomy = context.run.load_taxonomy()
        provenance = generate.describe(context, taxonomy)
        return artifact_ref(context, "dataset", generate.dataset_settings(context, taxonomy, provenance)).id

    assert name() == name(actors=7, cpus_per_actor=0.5, gpus_per_actor=0.5, judge_actors=3, timeout_s=5.0)
    assert (
        len(
            {
                name(),
                name(group_size=4),
                name(render={"steps": 3}),
                name(judge={"name": "tests.support.pixel_judge:load_slow_judge"}),
            }
        )
        == 4
    )


def test_groups_are_read_back_whole_or_not_at_all(store: ArtifactStore) -> None:
    groups = GroupStore(store, ArtifactRef("dataset", "d"))
    row = BenignPrompt(prompt_id="b", prompt="p", split="train", writer="w")
    for index in (3, 11):
        groups.write(index, [Record(row=row, seed=index)])
    assert groups.numbers() == [3, 11]
    assert groups.read(11)[0].seed == 11
    third, eleventh = store.keys(f"{groups.area.place}groups/")
    store.write(eleventh, store.read(third) or b"")
    with pytest.raises(CorruptArtifact, match="missing or corrupt.*rebuilds"):
        groups.read(11)
    assert groups.verified() == set(), "the actor that rebuilds the last group writes the empty prompt's states, too"
    groups.write_empty({"states": torch.zeros(1, 3, 2)})
    assert groups.verified() == {3}
    groups.clear()
    assert store.keys("work/") == []
