"""Workers that are killed in the middle of their work: the run ends as if nobody had been."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from cluster.store.config import StoreConfig
from jobs.generate import stage as generate
from jobs.run.artifacts import ArtifactRef, StageContext
from jobs.train import stage as train
from safety.dataset.summary import DatasetSummary
from tests.conftest import fresh_s3_store
from tests.faults import small_run
from tests.faults.faulty_proxy import Faults, FaultyProxy
from tests.faults.figures import Figures
from tests.faults.killing import Killer, descendants, wait_for
from tests.faults.small_run import EVERY, STEPS, Made, WatchedStore, writes
from tests.support.s3_server import RunningServer
from tests.support.small_world import BENIGN_ROWS, PAIRS

pytestmark = [pytest.mark.nightly, pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1200)]
GROUPS, EMPTY, CHECKPOINTS = "/groups/", "/empty.safetensors", "/checkpoints/"
Watched = Callable[..., StageContext]


@pytest.fixture
def watched(
    ray_cluster: None, tiny_model_dir: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Watched:
    """Return a function that makes the context of a small run in an empty store that notes its writes."""

    def make(**train_settings: object) -> StageContext:
        store = WatchedStore(StoreConfig(data_dir=tmp_path_factory.mktemp("store")), tmp_path / "writes", pause_s=0.25)
        settings = {**small_run.TRAIN, "max_failures": 10, "cpus_per_worker": 0.5, **train_settings}
        return small_run.context_of(tiny_model_dir, store, tmp_path, train=settings)

    return make


def rows_of(context: StageContext, made: Made) -> list[str]:
    """Return the ids of all rows of the dataset, each as often as it is there."""
    folder = context.folder(made.dataset)
    rejected = [
        row_id
        for path in sorted(folder.glob("rejected/*.parquet"))
        for row_id in pq.read_table(path, columns=["row_id"]).column(0).to_pylist()
    ]
    kept = [
        f"{row['pair_id']}/{row['conditioned_on']}"
        for path in sorted(folder.glob("data/*.parquet"))
        for row in pq.read_table(path, columns=["pair_id", "conditioned_on"]).to_pylist()
    ]
    return [*rejected, *kept]


def test_data_actors_are_killed(
    watched: Watched, undisturbed: Made, times: Callable[[int, int], int], figures: Figures
) -> None:
    context, count = watched(), times(5, 2)
    log = context.store.log  # type: ignore[attr-defined]
    # A diffusion actor writes once by itself, when its model is loaded; a judge writes every group.
    killers = [Killer(log, EMPTY, 1, seed=1), Killer(log, GROUPS, count - 1, seed=2)]
    try:
        dataset = generate.run(context)
    finally:
        for killer in killers:
            killer.close()
    assert [len(killer.kills) for killer in killers] == [1, count - 1]
    assert dataset == undisturbed.dataset
    manifest = context.store.verify(*dataset)
    found = {f"dataset/{name}": entry.sha256 for name, entry in manifest.files.items()}
    assert found == {name: digest for name, digest in undisturbed.hashes.items() if name.startswith("dataset/")}
    made = undisturbed._replace(dataset=dataset)
    rows = rows_of(context, made)
    assert len(rows) == len(set(rows)), "no row is doubled"
    summary = DatasetSummary.model_validate_json((context.folder(dataset) / "summary.json").read_bytes())
    assert summary.rows == PAIRS + BENIGN_ROWS, "no row is missing"
    assert context.store.keys("work/dataset/") == []
    figures.note(
        "SIGKILLs of data actors in one run",
        f"{count} kills: the run finishes with the undisturbed run's dataset, byte for byte; no row missing or doubled",
        kills=count,
        rows=summary.rows,
    )


def steps_by_process(log: Path) -> list[tuple[int, list[int]]]:
    """Return the steps of the checkpoints that each worker finished, worker after worker."""
    found: list[tuple[int, list[int]]] = []
    for write in writes(log, CHECKPOINTS):
        if not found or found[-1][0] != write.pid:
            found.append((write.pid, []))
        found[-1][1].append(int(Path(write.key).stem))
    return found


def test_train_workers_and_their_driver_are_killed(
    watched: Watched, undisturbed: Made, times: Callable[[int, int], int], figures: Figures
) -> None:
    context, count = watched(), times(5, 1)
    log = context.store.log  # type: ignore[attr-defined]
    small_run.copy_dataset(undisturbed.store, context.store)
    dataset = generate.run(context)
    assert dataset == undisturbed.dataset, "it is there already"
    killer = Killer(log, CHECKPOINTS, count, seed=3)
    driver = threading.Thread(target=kill_driver, args=(killer, times(1, 0)), daemon=True)
    driver.start()
    try:
        expert = train.run(context, dataset)[small_run.CATEGORY]
    finally:
        killer.close()
    driver.join(timeout=10)
    assert len(killer.kills) == count
    workers = steps_by_process(log)
    assert len(workers) > count
    # A worker that is killed between a checkpoint's write and its line in the log leaves a gap, never a repetition.
    steps = [step for _, steps in workers for step in steps]
    assert steps == sorted(set(steps)), "it goes on from the newest checkpoint: less than an interval is redone"
    assert steps[-1] == STEPS
    assert small_run.made(context.store, dataset, expert).hashes == undisturbed.hashes
    assert context.store.keys("work/expert/") == [], "no orphan checkpoint"
    leave_work_behind(context, dataset, expert)
    assert small_run.run(context).hashes == undisturbed.hashes
    assert context.store.keys("work/expert/") == context.store.keys("work/dataset/") == [], "the next start clears"
    figures.note(
        "SIGKILLs of train workers in one run, and of the process that drives the training",
        f"{count} kills: the adapter is the undisturbed run's, byte for byte; 0 orphan checkpoints; after each "
        f"less than one checkpoint interval ({EVERY} steps) was redone",
        kills=count,
    )


def leave_work_behind(context: StageContext, dataset: ArtifactRef, expert: ArtifactRef) -> None:
    """Bring the store to where a run leaves it that dies after it has published and before it has cleared."""
    for key in (
        f"work/expert/{expert.id}/checkpoints/{STEPS:08d}.safetensors",
        f"work/dataset/{dataset.id}/groups/000000.json",
    ):
        context.store.write(key, b"left")


def kill_driver(killer: Killer, count: int) -> None:
    """Kill the task that holds the trainer, once all workers that are to be killed have been."""
    if not count:
        return
    wait_for(lambda: len(killer.kills) == killer.count, "the last kill of a worker")
    drivers = [pid for pid, title in descendants(os.getpid()).items() if title.startswith("ray::fit")]
    assert drivers
    os.kill(drivers[0], signal.SIGKILL)


def test_a_run_through_a_faulty_store_ends_right(
    ray_cluster: None,
    s3_server: RunningServer,
    tiny_model_dir: Path,
    tmp_path: Path,
    undisturbed: Made,
    full: bool,
    figures: Figures,
) -> None:
    if not full:
        pytest.skip("many minutes of waiting: with --faults-full; test_faulty_store has the same faults without Ray")
    faults, outage_s = Faults(0.2, 0.03, 0.03, 0.03, latency_s=0.5), 60.0
    proxy = FaultyProxy(s3_server.port, faults, seed=4)
    direct = fresh_s3_store(s3_server)
    store = WatchedStore(direct.config.model_copy(update={"endpoint": proxy.endpoint}), tmp_path / "writes")
    context = small_run.context_of(tiny_model_dir, store, tmp_path)
    outage = threading.Thread(target=away_after, args=(proxy, store.log, outage_s), daemon=True)
    outage.start()
    try:
        made = small_run.run(context)
    finally:
        proxy.close()
    outage.join(timeout=outage_s)
    assert small_run.made(direct, made.dataset, made.expert).hashes == undisturbed.hashes
    assert direct.keys("work/dataset/") == direct.keys("work/expert/") == []
    assert proxy.seen["outage"]
    assert proxy.seen["busy"]
    figures.note(
        "a whole run through that proxy",
        f"{proxy.seen.total()} requests, {proxy.seen.total() - proxy.seen['passed']} failed, {outage_s:g} s outage in "
        "training: dataset and adapter are the undisturbed run's, byte for byte; nothing left behind",
        **proxy.seen,
    )


def away_after(proxy: FaultyProxy, log: Path, seconds: float) -> None:
    """Let the store be away once training has written its first checkpoint."""
    wait_for(lambda: bool(writes(log, "/checkpoints/")), "the first checkpoint")
    proxy.outage(seconds)
