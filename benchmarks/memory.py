"""The memory of a full-size training step and render, measured against the estimate that presets are chosen by.

    python -m benchmarks.memory --model sd15 --device cpu --dtype float32 --pairs 1 --checkpointing --images 1
    python -m benchmarks.memory --model sdxl --device cuda            # at the card's own preset

Weights are random, so no model is needed. Each measurement runs in a process of its own: on a CPU its peak is that of the
resident set beyond what it had before the model, on a GPU that of torch's allocator. With no plan given, the one that
training would choose for the free memory is taken, for the batch of a default expert.
"""

from __future__ import annotations

import json
import platform
import time
from importlib.metadata import version
from typing import Annotated

import torch
import typer

from benchmarks.own_process import in_own_process, peak_beyond, peak_bytes
from benchmarks.sizes import SHAPES, family, random_rows
from safety.experts.config import ExpertConfig
from safety.experts.engine import TorchEngine
from safety.experts.expert import Expert
from safety.experts.memory import (
    GIB,
    StepMemory,
    choose_plan,
    free_bytes,
    latents_of,
    measure_skeleton,
    return_memory_at_once,
)
from safety.experts.passes import PassPlan


def estimate(name: str, dtype: torch.dtype, config: ExpertConfig, device: str) -> StepMemory:
    shapes = SHAPES[name]
    return measure_skeleton(
        lambda: family(name, dtype, "meta"), config, shapes.latent, shapes.prompt, cpu=device == "cpu"
    )


def step(
    name: str, dtype: torch.dtype, device: str, config: ExpertConfig, plan: PassPlan, steps: int
) -> dict[str, float]:
    """Return the peak in bytes and the seconds of a step, measured in this process."""
    from diffusers import UNet2DConditionModel  # noqa: F401  (what it takes is no part of the model's memory)

    torch.set_num_threads(config.threads)
    if device == "cpu":
        return_memory_at_once()
    before = peak_bytes()
    model = family(name, dtype, device)
    expert = Expert(model, random_rows(name, config.rows, config.benign_rows), config, 0, plan=plan)
    engine = TorchEngine(expert)
    seconds = []
    for number in range(steps):
        started = time.perf_counter()
        engine.backward(engine.forward(number, 0).loss)
        engine.update(1e-4)
        if device != "cpu":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    reserved = 0 if device == "cpu" else torch.cuda.max_memory_reserved()
    return {
        "peak": peak_beyond(before, device),
        "reserved": reserved,
        "process": before,
        "seconds": min(seconds),
    }


def main(
    model: Annotated[str, typer.Option(help="sd15 or sdxl")] = "sd15",
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    dtype: Annotated[str, typer.Option(help="of the base")] = "float32",
    pairs: Annotated[int | None, typer.Option(help="pairs of a step; none: a default expert's")] = None,
    images: Annotated[int | None, typer.Option(help="latents of a pass; none: chosen")] = None,
    checkpointing: Annotated[bool, typer.Option(help="with gradient checkpointing")] = False,
    whole: Annotated[bool, typer.Option(help="all latents in one pass")] = False,
    threads: int = 1,
    steps: int = 1,
    precision: str = "auto",
) -> None:
    """Estimate, measure and print one JSON line."""
    kind: torch.dtype = getattr(torch, dtype)
    sizes = {} if pairs is None else {"rows": pairs, "benign_rows": 0, "objective": {"name": "diffusion-dpo"}}
    config = ExpertConfig.model_validate(
        {"lora": {"targets": None}, "threads": threads, "validation_rows": 0, "precision": precision, **sizes}
    )
    started = time.perf_counter()
    memory = estimate(model, kind, config, device)
    estimated_s = time.perf_counter() - started
    latents = latents_of(config)
    if images or whole or checkpointing:
        plan = PassPlan(images=images, checkpointing=checkpointing)
    else:
        plan = choose_plan(memory, config, latents, free_bytes(torch.device(device)))
    found = in_own_process(step, model, kind, device, config, plan, steps)
    wanted = memory.peak(plan, latents)
    print(
        json.dumps(
            {
                "model": model,
                "device": torch.cuda.get_device_name() if device == "cuda" else platform.machine(),
                "dtype": dtype,
                "latents": latents,
                "plan": plan.model_dump(),
                "estimate_gib": round(wanted / GIB, 3),
                "peak_gib": round(found["peak"] / GIB, 3),
                "ratio": round(wanted / found["peak"], 3),
                "reserved_gib": round(found["reserved"] / GIB, 3),
                "process_gib": round(found["process"] / GIB, 3),
                "seconds": round(found["seconds"], 2),
                "estimated_in_s": round(estimated_s, 1),
                "torch": version("torch"),
            }
        )
    )


if __name__ == "__main__":
    typer.run(main)
