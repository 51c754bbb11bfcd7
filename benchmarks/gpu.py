"""Every figure that needs a GPU, in one script of a quarter of an hour: each benchmark in a process of its own, within the time.

    python -m benchmarks.gpu --output docs/benchmarks/gpu.jsonl
    python -m benchmarks.gpu --dry          # the same on the embedded model and a CPU

A benchmark that fails, or has no time left, is a line that says so; the others go on.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

MINUTES = 14.0
HALF = ("--device", "cuda", "--dtype", "bfloat16")
WAYS = ("--channels-last", "--compiled")
BENCHMARKS: tuple[tuple[str, ...], ...] = (
    ("train_step", "--size", "sd15", "--pairs", "16", "--rounds", "8", *HALF),
    ("render", "--size", "sd15", "--batch", "16", "--steps", "30", "--guidance", "7.5", "--rounds", "2", *HALF, *WAYS),
    ("profile_step", "--size", "sd15", "--pairs", "16", *HALF),
    ("experts", "--size", "sd15", "--pairs", "16", "--steps", "10", *HALF),
    ("memory", "--model", "sd15", *HALF),
    ("train_step", "--size", "sdxl", "--pairs", "2", "--rounds", "5", *HALF),
    ("memory", "--model", "sdxl", *HALF),
)
"""The most telling first: the last ones may find no time. Sizes fit into 80 GB: of SDXL all four ways at once take some 62 GiB."""
DRY: tuple[tuple[str, ...], ...] = (
    ("train_step", "--size", "pico", "--pairs", "2", "--rounds", "1", "--no-memory"),
    ("render", "--size", "pico", "--batch", "2", "--steps", "1", "--rounds", "1", "--channels-last"),
    ("experts", "--size", "pico", "--experts", "2", "--pairs", "2", "--steps", "1"),
    ("profile_step", "--size", "pico", "--pairs", "2", "--batch", "2", "--steps", "1"),
)


def measure(benchmark: tuple[str, ...], seconds: float) -> dict[str, Any]:
    """Run a benchmark and return its command, its seconds, and the lines of JSON that it printed or why there are none."""
    command = ["benchmarks." + benchmark[0], *benchmark[1:]]
    found: dict[str, Any] = {"command": f"python -m {' '.join(command)}"}
    if seconds <= 0:
        return {**found, "failed": "no time left"}
    started = time.monotonic()
    # A session of its own, so that the processes that it starts end with it: they would keep the card from the next one.
    process = subprocess.Popen(
        [sys.executable, "-m", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        printed, said = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        printed, said = process.communicate()
        found["failed"] = f"not finished in {seconds:.0f} s"
    else:
        if process.returncode:
            found["failed"] = said.strip().splitlines()[-1:] or [f"exit code {process.returncode}"]
    found["seconds"] = round(time.monotonic() - started, 1)
    # What it measured before it failed counts too.
    return {**found, "lines": [json.loads(line) for line in printed.splitlines() if line.startswith("{")]}


def main(
    output: Annotated[Path, typer.Option(help="the file of JSON lines that is written")] = Path("out/gpu.jsonl"),
    minutes: Annotated[float, typer.Option(help="for all together")] = MINUTES,
    dry: Annotated[bool, typer.Option("--dry", help="the same on a CPU")] = False,
) -> None:
    """Run all, print and write what they give."""
    output.parent.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * minutes
    with output.open("w", encoding="utf-8") as file:
        for benchmark in DRY if dry else BENCHMARKS:
            line = json.dumps(measure(benchmark, end - time.monotonic()))
            typer.echo(line)
            file.write(f"{line}\n")
            file.flush()


if __name__ == "__main__":
    typer.run(main)
