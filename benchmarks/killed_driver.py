"""Benchmark of resumption: a run whose driver is killed in every stage, against an undisturbed run.

    python benchmarks/killed_driver.py --config jobs/configs/pico.yaml

Runs the config once undisturbed and once with SIGKILL to the driver some seconds into each stage, started again each
time. Prints the work that each new start found finished, and whether both runs ended with the same dataset and the same
adapters, byte for byte. The search may differ: its proposals depend on the order in which trials end.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

ROOT = Path(__file__).parent.parent
STAGES = ("generate", "train", "merge", "evaluate", "serve")
FOUND = re.compile(r"(?:already published|finished already|goes on)")
PACKAGES = ("ray", "torch", "deepspeed")
LIMIT_S = 3600.0


def prepare(config: Path, folder: Path, port: int) -> Path:
    """Write a config that runs in ``folder`` alone, and return its path."""
    document = yaml.safe_load(config.read_text(encoding="utf-8"))
    document["run"]["output"] = str(folder / "out")
    document["store"] = {"data_dir": str(folder / "store")}
    document["serve"] = {**document.get("serve", {}), "port": port}
    folder.mkdir(parents=True)
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    return path


def start(config: Path, log: Path) -> subprocess.Popen[bytes]:
    """Start a pipeline in its own session, with its output in ``log``."""
    command = [sys.executable, "-m", "jobs.pipeline", "--config", str(config)]
    with log.open("wb") as output:
        return subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)


def finish(config: Path, log: Path) -> float:
    """Run a pipeline to its end and return its seconds."""
    started = time.monotonic()
    process = start(config, log)
    if process.wait(timeout=LIMIT_S):
        raise SystemExit(f"the run failed:\n{log.read_text(errors='replace')[-3000:]}")
    return time.monotonic() - started


def kill_in(stage: str, after_s: float, config: Path, log: Path) -> bool:
    """Start a pipeline and kill its driver ``after_s`` seconds into a stage; return whether it was still running."""
    process = start(config, log)
    deadline = time.monotonic() + LIMIT_S
    while f"{stage} ──" not in log.read_text(errors="replace"):
        if process.poll() is not None or time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    time.sleep(after_s)
    alive = process.poll() is None
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    return alive


def found_finished(log: Path) -> list[str]:
    """Return the log lines about work that a start found finished."""
    return [line.strip() for line in log.read_text(errors="replace").splitlines() if FOUND.search(line)]


def hashes(folder: Path) -> dict[str, dict[str, str]]:
    """Return the SHA-256 of every file of the datasets and adapters that a run made."""
    work = folder / "out" / "work"
    return {
        kind: {
            str(path.relative_to(work)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted((work / kind).rglob(pattern))
        }
        for kind, pattern in (("dataset", "*.parquet"), ("expert", "*.safetensors"))
    }


def main(
    config: Path = ROOT / "jobs" / "configs" / "pico.yaml",
    work: Path = Path("out/killed"),
    after_s: Annotated[float, typer.Option(help="seconds into a stage at which its driver is killed")] = 12.0,
    output: Annotated[Path | None, typer.Option(help="where to write the figures as JSON")] = None,
) -> None:
    """Run both and compare them."""
    undisturbed = prepare(config, work / "undisturbed", 8401)
    figures: dict[str, Any] = {"undisturbed_s": finish(undisturbed, work / "undisturbed" / "log")}
    print(f"undisturbed: {figures['undisturbed_s']:.0f} s", flush=True)
    killed = prepare(config, work / "killed", 8402)
    figures["kills"] = []
    for stage in STAGES:
        log = work / "killed" / f"{stage}.log"
        alive = kill_in(stage, after_s, killed, log)
        figures["kills"].append({"stage": stage, "killed": alive, "found_finished": found_finished(log)})
        print(f"{stage}: {'killed' if alive else 'was over before it could be killed'}; it had found", flush=True)
        print("\n".join(f"    {line}" for line in found_finished(log)), flush=True)
    figures["last_start_s"] = finish(killed, work / "killed" / "last.log")
    figures["last_found_finished"] = found_finished(work / "killed" / "last.log")
    one, other = hashes(work / "undisturbed"), hashes(work / "killed")
    figures["same"] = {kind: bool(one[kind]) and one[kind] == other[kind] for kind in one}
    figures["machine"] = f"{platform.machine()}, {os.cpu_count()} cores"
    figures["versions"] = {package: version(package) for package in PACKAGES}
    print(f"last start: {figures['last_start_s']:.0f} s; the same as undisturbed: {figures['same']}")
    if output is not None:
        output.write_text(json.dumps(figures, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
