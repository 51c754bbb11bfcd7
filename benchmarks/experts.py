"""Seven experts on one device against one: the memory and the time of experts that are trained in turn over one loaded base.

    python -m benchmarks.experts --size pico
    python -m benchmarks.experts --size sd15 --device cuda --dtype bfloat16

It is what a worker does with ``train.experts_per_worker`` (``jobs.train.worker``): the base stays, an expert's adapter and
optimizer come and go. Each count is a process of its own, twice in turns. Prints one JSON line each, then the ratios: of the peaks,
and of the time to so many times one expert's, the latter without loading the base and the first step.
"""

from __future__ import annotations

import gc
import json
import time
from typing import Annotated

import torch
import typer

from benchmarks.machine import describe, synchronise
from benchmarks.own_process import in_own_process, peak_beyond, peak_bytes
from benchmarks.sizes import family, random_rows
from benchmarks.train_step import BETA, TARGETS
from safety.experts.config import ExpertConfig
from safety.experts.engine import TorchEngine
from safety.experts.expert import Expert
from safety.experts.memory import return_memory_at_once
from safety.experts.passes import PassPlan
from safety.lora.attach import detach
from safety.lora.config import LoraConfig

ROUNDS = 2


def train_in_turn(
    count: int, size: str, device: str, dtype: torch.dtype, pairs: int, steps: int
) -> tuple[float, float]:
    """Train ``count`` experts for some steps each; return the peak in MiB, and the seconds without the first step's."""
    # What importing them takes is no part of an expert's memory.
    import peft  # noqa: F401
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel  # noqa: F401

    torch.set_num_threads(1 if device == "cpu" else torch.get_num_threads())
    return_memory_at_once()
    before = peak_bytes()
    config = ExpertConfig.model_validate(
        {
            "objective": {"name": "diffusion-dpo", "beta": BETA},
            "lora": LoraConfig(rank=8, alpha=8, targets=TARGETS),
            "rows": pairs,
            "benign_rows": 0,
            "timesteps": (0.0, 1.0),
            "distinct_batches": None,
            "threads": torch.get_num_threads(),
        }
    )
    model = family(size, dtype, device)

    def train(number: int, steps: int) -> None:
        engine = TorchEngine(Expert(model, random_rows(size, pairs, number), config, number, plan=PassPlan()))
        for step in range(steps):
            engine.backward(engine.forward(step, 0).loss)
            engine.update(1e-5)
        synchronise(device)
        detach(model)
        del engine
        gc.collect()

    # The first step makes what all later ones use again: one expert would pay for it alone, seven together.
    train(count, 1)
    clock = time.process_time if device == "cpu" else time.perf_counter
    started = clock()
    for number in range(count):
        train(number, steps)
    return peak_beyond(before, device) / 2**20, clock() - started


def main(
    size: Annotated[str, typer.Option(help="pico, sd15 or sdxl")] = "pico",
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    dtype: str = "float32",
    experts: int = 7,
    pairs: int = 10,
    steps: int = 8,
) -> None:
    """Measure one and several experts in turns, and print both and their ratios."""
    kind: torch.dtype = getattr(torch, dtype)
    found: dict[int, list[tuple[float, float]]] = {1: [], experts: []}
    for _ in range(ROUNDS):
        for count, figures in found.items():
            figures.append(in_own_process(train_in_turn, count, size, device, kind, pairs, steps))
    peaks, seconds = (
        {count: min(each[part] for each in figures) for count, figures in found.items()} for part in (0, 1)
    )
    typer.echo(json.dumps({"size": size, "dtype": dtype, "pairs": pairs, "steps": steps, **describe(device)}))
    for count in found:
        typer.echo(
            json.dumps({"experts": count, "peak MiB": round(peaks[count], 1), "seconds": round(seconds[count], 2)})
        )
    ratios = {
        "memory of one": round(peaks[experts] / peaks[1], 3),
        "time of so many alone": round(seconds[experts] / (experts * seconds[1]), 3),
    }
    typer.echo(json.dumps({"experts": experts, **ratios}))


if __name__ == "__main__":
    typer.run(main)
