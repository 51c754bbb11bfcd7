"""Benchmark of scale: generation with stand-ins for model and judge, at growing numbers of rows.

    python benchmarks/scale.py rows 10000 100000 1000000    # tiny rows: does the rate stay?
    python benchmarks/scale.py pairs 2000 4000              # rows of Stable Diffusion 1.5's sizes: what does the driver hold?

Each size runs in a process of its own, with the stage's own code from planning to publication, on a local Ray and a
folder as the store. Prints rows per second, the driver's peak memory and CPU time, its bytes from and to the store, the
largest that its temporary files became, and what the dataset has. All is deleted after each size.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer

ROOT = Path(__file__).parent.parent
app = typer.Typer(help=__doc__, no_args_is_help=True)
Folder = Annotated[Path, typer.Option(help="where the store lies while a size runs")]
Group = Annotated[int, typer.Option(help="rows per group")]


class Meter:
    """Counts the bytes that this process moves from and to the store."""

    def __init__(self) -> None:
        self.read = self.written = 0
        self.disk = 0

    def install(self) -> None:
        """Count from now on."""
        from cluster.store.folder import FolderObjects

        read, write, upload, download = (
            FolderObjects.read_versioned,
            FolderObjects.write,
            FolderObjects.upload,
            FolderObjects.download,
        )
        meter = self

        def counted_read(self: Any, key: str) -> Any:
            found = read(self, key)
            meter.read += 0 if found is None else len(found.data)
            return found

        def counted_write(self: Any, key: str, data: bytes, **conditions: Any) -> None:
            meter.written += len(data)
            write(self, key, data, **conditions)

        def counted_upload(self: Any, key: str, path: str) -> None:
            meter.written += Path(path).stat().st_size
            upload(self, key, path)

        def counted_download(self: Any, key: str, path: str, limit: int | None = None) -> bool:
            found = download(self, key, path, limit)
            meter.read += Path(path).stat().st_size if found else 0
            return found

        FolderObjects.read_versioned, FolderObjects.write = counted_read, counted_write  # type: ignore[method-assign]
        FolderObjects.upload, FolderObjects.download = counted_upload, counted_download  # type: ignore[method-assign]

    def watch(self, *folders: Path) -> None:
        """Note the most bytes that folders hold, twice a second, until the process ends."""

        def look() -> None:
            while True:
                self.disk = max(self.disk, sum(map(_bytes_in, folders)))
                time.sleep(0.5)

        threading.Thread(target=look, daemon=True).start()


def _bytes_in(folder: Path) -> int:
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += (Path(place) / name).stat().st_size
            except OSError:
                continue
    return total


def _peak_mib() -> float:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


@app.command(hidden=True)
def one(pairs: int, group_size: int, folder: Path, full: Annotated[bool, typer.Option()] = False) -> None:
    """Run one size and print its figures as a line of JSON; ``pairs`` beside a fiftieth of benign rows."""
    import ray
    import yaml
    from rich.console import Console

    from benchmarks import stub_generation as stub
    from cluster.session import ClusterConfig, worker_environment
    from cluster.store.artifacts import ArtifactStore
    from jobs.generate import actors, stage
    from jobs.run.artifacts import StageContext
    from jobs.run.config import RunConfig

    os.environ.update(worker_environment(ClusterConfig(auth="disabled")))
    temporary = folder / "tmp"
    temporary.mkdir(parents=True)
    tempfile.tempdir = str(temporary)
    taxonomy = folder / "taxonomy.yaml"
    taxonomy.write_text(yaml.safe_dump(stub.TAXONOMY.model_dump(mode="json")))
    benign = max(2, pairs // 50)
    validation = max(1, pairs // (10 * stub.CATEGORIES))
    run = RunConfig.model_validate(
        {
            "run": {"name": "scale", "output": str(folder / "out")},
            "store": {"data_dir": str(folder / "store")},
            "taxonomy": str(taxonomy),
            "generate": {
                "writer": stub.WRITER,
                "counts": {
                    "train": max(1, pairs // stub.CATEGORIES - validation),
                    "validation": validation,
                    "test": 0,
                    "heldout": 0,
                    "benign_train": benign // 2,
                    "benign_validation": benign // 2,
                    "benign_test": 0,
                    "benign_text_only": 0,
                },
                "judge": {"name": "benchmarks.stub_generation:load_stub_judge"},
                "group_size": group_size,
                "actors": 1,
            },
        }
    )
    actors.DiffusionActor = stub.FullSizeActor if full else stub.StubDiffusionActor  # type: ignore[assignment, misc]
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=10**9)
    meter = Meter()
    meter.install()
    meter.watch(temporary, folder / "out")
    seen: list[tuple[float, int]] = []
    counted = stage._count
    stage._count = lambda name, group: (seen.append((time.monotonic(), int(group["rows"]))), counted(name, group))[1]
    context = StageContext(run, ArtifactStore(run.store), folder / "out" / "work", Console(quiet=True))
    started, cpu = time.monotonic(), time.process_time()
    ref = stage.run(context)
    seconds, cpu_s = time.monotonic() - started, time.process_time() - cpu
    manifest = context.store.manifest(*ref)
    assert manifest is not None
    rows = sum(count for _, count in seen)
    steady = sum(count for _, count in seen[1:]) / max(1e-9, seen[-1][0] - seen[0][0])
    size = sum(entry.size for entry in manifest.files.values())
    again = time.monotonic()
    stage.run(context)
    figures = {
        "rows": rows,
        "seconds": round(seconds, 1),
        "rows/s in the stream": round(steady, 1),
        "rows/s in all": round(rows / seconds, 1),
        "driver peak MiB": round(_peak_mib()),
        "driver CPU ms/row": round(1000 * cpu_s / rows, 3),
        "driver read MB": round(meter.read / 1e6, 2),
        "driver wrote MB": round(meter.written / 1e6, 2),
        "driver disk MB": round(meter.disk / 1e6, 2),
        "dataset MB": round(size / 1e6, 1),
        "driver bytes / dataset": round((meter.read + meter.written) / size, 6),
        "files": len(manifest.files),
        "manifest MB": round(len(manifest.model_dump_json()) / 1e6, 2),
        "second start s": round(time.monotonic() - again, 2),
    }
    print(json.dumps(figures), flush=True)
    ray.shutdown()


def _measure(pairs: int, group: int, full: bool, folder: Path) -> dict[str, Any]:
    place = folder / f"scale-{pairs}"
    shutil.rmtree(place, ignore_errors=True)
    command = [sys.executable, str(Path(__file__)), "one", str(pairs), str(group), str(place)]
    command.insert(-1, "--full" if full else "--no-full")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(done.stderr[-4000:])
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        print(json.dumps(found), flush=True)
        return found
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _report(figures: list[dict[str, Any]]) -> None:
    print(f"{platform.machine()}, {os.cpu_count()} CPUs; ray {version('ray')}, torch {version('torch')}")
    for name in figures[0]:
        print(f"| {name} | {' | '.join(str(found[name]) for found in figures)} |")


@app.command()
def rows(sizes: list[int], group: Group = 250, folder: Folder = Path("/tmp/safetydpo-scale")) -> None:
    """Run tiny rows."""
    _report([_measure(size, group, False, folder) for size in sizes])


@app.command()
def pairs(sizes: list[int], group: Group = 16, folder: Folder = Path("/tmp/safetydpo-scale")) -> None:
    """Run pairs of Stable Diffusion 1.5's sizes: 1.5 MB each on the disk."""
    _report([_measure(size, group, True, folder) for size in sizes])


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    app()
