"""A run small enough to be disturbed again and again: a random model, a judge of pixel sums, one expert."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from rich.console import Console

from cluster.store.artifacts import ArtifactStore
from cluster.store.config import StoreConfig
from jobs.generate import stage as generate
from jobs.run.artifacts import ArtifactRef, StageContext
from jobs.run.config import RunConfig
from jobs.train import stage as train
from safety.lora.files import LORA_FILE
from tests.support.small_world import COUNTS, GATE, RECIPE, TAXONOMY

CATEGORY = "violence"
EVERY, STEPS = 2, 24
"""Steps between checkpoints, and in all."""
GROUP_SIZE = 4
GENERATE = {
    "writer": "small",
    "counts": COUNTS.model_dump(),
    "render": {"steps": 2, "batch": 8},
    # A quarter of a second a group, so that there is time to interrupt it.
    "judge": {"name": "tests.support.pixel_judge:load_slow_judge"},
    "group_size": GROUP_SIZE,
    "actors": 1,
    "timeout_s": 500,
}
TRAIN = {
    "gate": GATE,
    "expert": {
        **RECIPE,
        "steps": STEPS,
        "rows": 4,
        "benign_rows": 2,
        "warmup": 1,
        "validation_rows": 2,
        "checkpoint_every": EVERY,
        "precision": "fp32",
        "lora": {"rank": 2, "alpha": 2.0, "targets": None},
    },
    "categories": [CATEGORY],
    "all_single": False,
    "timeout_s": 800,
}


class WatchedStore(ArtifactStore):
    """A store that logs each write with its process in a file of this machine, and pauses after checkpoints."""

    def __init__(self, config: StoreConfig, log: Path, pause_s: float = 0.0) -> None:
        """Note in ``log``; a checkpoint's write takes ``pause_s`` more."""
        super().__init__(config)
        self.log, self.pause_s = log, pause_s

    def __getstate__(self) -> dict[str, Any]:
        """Pickle with the log's place."""
        return {**super().__getstate__(), "log": self.log, "pause_s": self.pause_s}

    def write(self, key: str, data: bytes, *, if_absent: bool = False, if_match: str | None = None) -> None:
        """Write, and then note process, time and key."""
        super().write(key, data, if_absent=if_absent, if_match=if_match)
        with self.log.open("a", encoding="utf-8") as file:
            file.write(f"{os.getpid()} {time.time():.3f} {key}\n")
        if "/checkpoints/" in key:
            time.sleep(self.pause_s)


class Write(NamedTuple):
    """A line of the log."""

    pid: int
    at: float
    key: str


def writes(log: Path, part: str) -> list[Write]:
    """Return the writes of keys that hold ``part``, in their order."""
    if not log.exists():
        return []
    lines = [line.split(maxsplit=2) for line in log.read_text(encoding="utf-8").splitlines()]
    return [Write(int(pid), float(at), key) for pid, at, key in lines if part in key]


def document(model: Path, store: StoreConfig, folder: Path, **sections: Any) -> dict[str, Any]:
    """Return the run as YAML holds it; ``sections`` change its parts."""
    taxonomy = folder / "small.yaml"
    taxonomy.write_text(yaml.safe_dump(TAXONOMY.model_dump(mode="json")), encoding="utf-8")
    found: dict[str, Any] = {
        "run": {"name": "small", "seed": 3, "output": str(folder / "out")},
        "store": store.model_dump(mode="json"),
        "model": {"path": str(model)},
        "taxonomy": str(taxonomy),
        "generate": GENERATE,
        "train": TRAIN,
    }
    return {name: {**found.get(name, {}), **change} for name, change in sections.items()} | {
        name: part for name, part in found.items() if name not in sections
    }


def context_of(model: Path, store: ArtifactStore, folder: Path, **sections: Any) -> StageContext:
    """Return the context of a small run on the Ray that this process is connected to."""
    run = RunConfig.model_validate(document(model, store.config, folder, **sections))
    return StageContext(run, store, folder / "work", Console(file=(folder / "console").open("w"), width=200))


class Made(NamedTuple):
    """A small run's artifacts and the hashes of their files in the store."""

    store: ArtifactStore
    dataset: ArtifactRef
    expert: ArtifactRef
    hashes: dict[str, str]


def run(context: StageContext) -> Made:
    """Generate and train."""
    dataset = generate.run(context)
    return made(context.store, dataset, train.run(context, dataset)[CATEGORY])


def copy_dataset(source: ArtifactStore, target: ArtifactStore) -> None:
    """Bring what a run has generated to another store."""
    for key in source.keys("artifacts/dataset/"):
        data = source.read(key)
        assert data is not None
        target.write(key, data)


def hashes(store: ArtifactStore, *artifacts: ArtifactRef) -> dict[str, str]:
    """Read the hashes of what must come out the same: a dataset's files, an expert's weights. All must verify."""
    found = {}
    for artifact in artifacts:
        files = store.verify(*artifact).files
        same = [LORA_FILE] if artifact.kind == "expert" else list(files)
        found |= {f"{artifact.kind}/{name}": files[name].sha256 for name in same}
    return found


def made(store: ArtifactStore, dataset: ArtifactRef, expert: ArtifactRef) -> Made:
    """Return a run's dataset and adapter, with their hashes."""
    return Made(store, dataset, expert, hashes(store, dataset, expert))
