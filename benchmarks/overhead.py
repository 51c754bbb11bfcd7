"""What Ray costs a run of an hour, against a plain loop over the same groups.

    python -m benchmarks.overhead --groups 60 --seconds 2

Rendering is simulated: an actor sleeps for a group's seconds, as a process does whose GPU works. All else is the stage's own code:
planning, Ray Data's stream, the judge's actor, the store, publication. The plain loop renders, judges and stores the
same groups in this process. From both come a fixed part (start to the first group's begin, and after the last) and a
part per group, and from these the overhead of an hour.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.machine import describe
from benchmarks.stub_generation import CATEGORIES, TAXONOMY, WRITER, StubDiffusionActor, load_stub_judge
from jobs.generate.config import GenerateConfig
from jobs.generate.groups import GroupStore
from jobs.run.artifacts import StageContext
from jobs.run.config import RunConfig

HOUR = 3600.0


class SleepingActor(StubDiffusionActor):
    """Renders nothing for a group's time."""

    seconds = 1.0

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Sleep, and return the group as a renderer would."""
        time.sleep(self.seconds)
        return super().__call__(row)


def write_run(folder: Path, groups: int, size: int) -> RunConfig:
    """Return a run of so many full groups, with a store of its own."""
    import yaml

    folder.mkdir(parents=True)
    (folder / "taxonomy.yaml").write_text(yaml.safe_dump(TAXONOMY.model_dump(mode="json")), encoding="utf-8")
    counts = {"train": groups * size // CATEGORIES, "validation": 1, "benign_train": 2, "benign_validation": 2}
    none = dict.fromkeys(("test", "heldout", "benign_test", "benign_text_only"), 0)
    return RunConfig.model_validate(
        {
            "run": {"name": "overhead", "output": str(folder / "out")},
            "store": {"data_dir": str(folder / "store")},
            "taxonomy": str(folder / "taxonomy.yaml"),
            "generate": {
                "writer": WRITER,
                "counts": {**counts, **none},
                "judge": {"name": "benchmarks.stub_generation:load_stub_judge"},
                "group_size": size,
                "actors": 1,
            },
        }
    )


def by_ray(run: RunConfig, seconds: float) -> tuple[float, int]:
    """Return the seconds of the whole stage, Ray's start among them, and its number of groups."""
    import os

    import ray
    from rich.console import Console

    from cluster.session import ClusterConfig, worker_environment
    from cluster.store.artifacts import ArtifactStore
    from jobs.generate import actors, stage

    os.environ.update(worker_environment(ClusterConfig(auth="disabled")))
    actors.DiffusionActor = type("Actor", (SleepingActor,), {"seconds": seconds})  # type: ignore[assignment, misc]
    done: list[dict[str, Any]] = []
    counted = stage._count
    stage._count = lambda name, group: (done.append(group), counted(name, group))[1]
    started = time.monotonic()
    ray.init(address="local", num_cpus=2, include_dashboard=True, log_to_driver=False, object_store_memory=10**9)
    try:
        context = StageContext(run, ArtifactStore(run.store), run.run.output / "work", Console(quiet=True))
        stage.run(context)
        return time.monotonic() - started, len(done)
    finally:
        ray.shutdown()


def by_loop(run: RunConfig, seconds: float) -> tuple[float, int]:
    """Return the seconds of a plain loop over the same groups, and their number."""
    from cluster.store.artifacts import ArtifactStore
    from jobs.run.artifacts import ArtifactRef
    from safety.dataset.plan import plan_dataset
    from safety.dataset.record import dump_group, load_group
    from safety.dataset.reviewer import GroupReviewer
    from safety.prompts.writer import write_prompts

    started = time.monotonic()
    config: GenerateConfig = run.generate
    plan = plan_dataset(write_prompts(WRITER, TAXONOMY, config.counts, 0), config.group_size, 0)
    store = GroupStore(ArtifactStore(run.store), ArtifactRef("dataset", "dataset-loop"))
    actor = SleepingActor(run.model, config, store)
    actor.seconds = seconds
    reviewer = GroupReviewer(load_stub_judge(config.judge, TAXONOMY), config.filter)
    for group in plan.groups:
        row = actor({"index": group.index, "records": dump_group(group.records)})
        store.store_group(group.index, reviewer.review(load_group(row["records"])), run.model.path)
    return time.monotonic() - started, len(plan.groups)


def overhead(few: tuple[float, int], many: tuple[float, int], seconds: float) -> tuple[float, float]:
    """Return the fixed seconds and those per group beyond the simulated rendering, from runs of two lengths."""
    each = (many[0] - few[0]) / (many[1] - few[1]) - seconds
    return few[0] - few[1] * (each + seconds), each


def main(
    groups: Annotated[int, typer.Option(help="groups of the longer run; the shorter one has a third")] = 60,
    size: Annotated[int, typer.Option(help="rows of a group")] = 16,
    seconds: Annotated[float, typer.Option(help="simulated rendering of a group")] = 2.0,
    hour_group: Annotated[float, typer.Option(help="rendering of a group in the hour's run, seconds")] = 20.0,
) -> None:
    """Measure both ways at two lengths and print the overhead of an hour as JSON."""
    found: dict[str, list[tuple[float, int]]] = {"ray": [], "loop": []}
    for count in (max(7, groups // 3), groups):
        for name, way in (("ray", by_ray), ("loop", by_loop)):
            folder = Path(tempfile.mkdtemp(prefix="safetydpo-overhead-"))
            try:
                found[name].append(way(write_run(folder / "run", count, size), seconds))
            finally:
                shutil.rmtree(folder, ignore_errors=True)
    parts = {name: overhead(few, many, seconds) for name, (few, many) in found.items()}
    hour = {name: fixed + HOUR / hour_group * each for name, (fixed, each) in parts.items()}
    print(
        json.dumps(
            {
                **{f"{name} fixed s": round(fixed, 1) for name, (fixed, _) in parts.items()},
                **{f"{name} s per group": round(each, 3) for name, (_, each) in parts.items()},
                "groups of an hour": round(HOUR / hour_group),
                "overhead of an hour": round((hour["ray"] - hour["loop"]) / (HOUR + hour["loop"]), 4),
                **describe("cpu"),
            }
        )
    )


if __name__ == "__main__":
    typer.run(main)
