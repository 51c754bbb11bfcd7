"""Rendering in batches against one image at a time: the same prompts, steps and seeds, taken in turns in one run.

    python -m benchmarks.render --size pico
    python -m benchmarks.render --size sd15 --device cuda --dtype bfloat16 --batch 16

Weights are random but for ``pico``, the embedded model. Prints images/s, the counted TFLOP, the share of the measured
matmul rate and the largest difference of a pixel between both ways (rounding: a batch's products are added up in
another order).
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from typing import Annotated, Any

import torch
import typer
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.machine import describe, matmul_tflops, synchronise
from benchmarks.sizes import SHAPES, family, vae
from safety.families.stable_diffusion import StableDiffusion


def make_model(size: str, dtype: torch.dtype, device: str) -> StableDiffusion:
    """Return a model that renders, without a text encoder: states are given."""
    found = family(size, dtype, device)
    pipeline: Any = found.pipeline
    pipeline.vae = vae(size, dtype, device)
    return found


def sampler(
    model: StableDiffusion, size: str, images: int, batch: int, steps: int, guidance: float
) -> Callable[[], Tensor]:
    """Return a function that renders the images, ``batch`` at a time."""
    shapes = SHAPES[size]
    draw = torch.Generator().manual_seed(0)
    noise = torch.randn(images, *shapes.latent, generator=draw)
    conditioning = {name: torch.randn(images, *shape, generator=draw) for name, shape in shapes.prompt.items()}
    against = {name: torch.randn(1, *shape, generator=draw) for name, shape in shapes.prompt.items()}

    def render() -> Tensor:
        parts = [
            model.sample(
                {name: value[start : start + batch] for name, value in conditioning.items()},
                noise[start : start + batch].to(model.device),
                steps=steps,
                guidance=guidance,
                negative=against,
            )
            for start in range(0, images, batch)
        ]
        return torch.cat(parts)

    return render


def main(
    size: Annotated[str, typer.Option(help="pico or sd15")] = "pico",
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    dtype: str = "float32",
    batch: Annotated[int, typer.Option(help="images at once")] = 16,
    steps: int = 6,
    guidance: float = 2.5,
    rounds: int = 3,
) -> None:
    """Measure both ways in turns and print one JSON line each."""
    torch.set_num_threads(1 if device == "cpu" else torch.get_num_threads())
    kind: torch.dtype = getattr(torch, dtype)
    model = make_model(size, kind, device)
    ways = {count: sampler(model, size, batch, count, steps, guidance) for count in (1, batch)}
    clock = time.process_time if device == "cpu" else time.perf_counter
    seconds: dict[int, list[float]] = {count: [] for count in ways}
    with FlopCounterMode(display=False) as counter:
        images = {count: way().float() for count, way in ways.items()}
    flops = counter.get_total_flops() / len(ways) / 1e12
    for _ in range(rounds):
        for count, way in ways.items():
            synchronise(device)
            started = clock()
            way()
            synchronise(device)
            seconds[count].append(clock() - started)
    top = matmul_tflops(device, kind)
    away = float((images[1] - images[batch]).abs().max()) * 127.5
    print(
        json.dumps({"size": size, "steps": steps, "dtype": dtype, "matmul TFLOP/s": round(top, 3), **describe(device)})
    )
    for count, times in seconds.items():
        middle = statistics.median(times)
        row = {
            "batch": count,
            "images/s": round(batch / middle, 3),
            "TFLOP an image": round(flops / batch, 4),
            "of the matmul rate": round(flops / middle / top, 3),
            "times one by one": round(statistics.median(seconds[1]) / middle, 2),
            "largest difference of 255": round(away, 2),
        }
        print(json.dumps(row))


if __name__ == "__main__":
    typer.run(main)
