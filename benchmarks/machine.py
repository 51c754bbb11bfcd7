"""What a benchmark says about where it ran: processor, versions, and the fastest matrix product that was measured there."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("torch", "diffusers", "transformers", "peft")
SIDES = {"cpu": 1024, "cuda": 8192}
SECONDS = 2.0


def describe(device: str) -> dict[str, str | int]:
    """Return the machine's names and the packages' versions."""
    cpu = [line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    return {
        "cpu": f"{cpu[0] if cpu else platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
        "cores": os.cpu_count() or 0,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        **{name: version(name) for name in PACKAGES},
    }


def matmul_tflops(device: str, dtype: torch.dtype) -> float:
    """Return the rate of the fastest square matrix product in two seconds, TFLOP/s: what other rates are a share of."""
    side = SIDES[device]
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    best, began = float("inf"), time.perf_counter()
    while time.perf_counter() - began < SECONDS:
        synchronise(device)
        started = time.perf_counter()
        torch.mm(left, right)
        synchronise(device)
        best = min(best, time.perf_counter() - started)
    return 2 * side**3 / best / 1e12


def in_turns(ways: Mapping[str, Callable[[], Any]], rounds: int, device: str) -> dict[str, list[float]]:
    """Return the seconds of each way's runs, the ways taken in turns.

    On a CPU they are the process's own, of one thread: what else runs on the machine is no part of a way.
    """
    clock = time.process_time if device == "cpu" else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            synchronise(device)
            started = clock()
            way()
            synchronise(device)
            seconds[name].append(clock() - started)
    return seconds


def synchronise(device: str) -> None:
    """Wait for a GPU; a CPU has done its work."""
    if device == "cuda":
        torch.cuda.synchronize()


def _lines(path: str) -> list[str]:
    file = Path(path)
    return file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
