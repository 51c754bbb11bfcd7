"""Rendering in batches against one image at a time, and where asked for in another memory layout or compiled.

The same weights, prompts, steps and seeds, taken in turns in one run:

    python -m benchmarks.render --size pico
    python -m benchmarks.render --size sd15 --device cuda --dtype bfloat16 --batch 16

Weights are random but for ``pico``, the embedded model. Prints images/s, the counted TFLOP, the share of the measured
matmul rate and the largest difference of a pixel from one by one (rounding: a batch's products are added up in
another order).
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from typing import Annotated, Any

import torch
import typer
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.machine import describe, in_turns, matmul_tflops
from benchmarks.sizes import SHAPES, family, vae
from safety.families.stable_diffusion import StableDiffusion

ALONE, BATCHED = "one by one", "batched"


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


def variant(size: str, dtype: torch.dtype, device: str, *, channels_last: bool = False, compiled: bool = False) -> Any:
    """Return the model with its networks in another memory layout, or its denoiser compiled; the same weights each time."""
    torch.manual_seed(0)
    model = make_model(size, dtype, device)
    if channels_last:
        for network in (model.denoiser, model.pipeline.vae):
            network.to(memory_format=torch.channels_last)
    if compiled:
        # On a GPU with CUDA graphs, which a batch of one size allows.
        model.denoiser.compile(mode="reduce-overhead")
    return model


def main(
    size: Annotated[str, typer.Option(help="pico or sd15")] = "pico",
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    dtype: str = "float32",
    batch: Annotated[int, typer.Option(help="images at once")] = 16,
    steps: int = 6,
    guidance: float = 2.5,
    rounds: int = 3,
    channels_last: Annotated[bool, typer.Option("--channels-last", help="measure that layout too")] = False,
    compiled: Annotated[bool, typer.Option("--compiled", help="measure a compiled denoiser too")] = False,
) -> None:
    """Measure the ways in turns and print one JSON line each."""
    torch.set_num_threads(1 if device == "cpu" else torch.get_num_threads())
    kind: torch.dtype = getattr(torch, dtype)
    model = variant(size, kind, device)
    models = {ALONE: (model, 1), BATCHED: (model, batch)}
    if channels_last:
        models["batched, channels last"] = (variant(size, kind, device, channels_last=True), batch)
    if compiled:
        models["batched, compiled"] = (variant(size, kind, device, compiled=True), batch)
    ways = {name: sampler(each, size, batch, count, steps, guidance) for name, (each, count) in models.items()}
    # The first call warms up, and compiles.
    images = {name: way().float() for name, way in ways.items()}
    with FlopCounterMode(display=False) as counter:
        ways[BATCHED]()
    flops = counter.get_total_flops() / 1e12
    seconds = in_turns(ways, rounds, device)
    top = matmul_tflops(device, kind)
    print(
        json.dumps({"size": size, "steps": steps, "dtype": dtype, "matmul TFLOP/s": round(top, 3), **describe(device)})
    )
    for name, times in seconds.items():
        middle = statistics.median(times)
        row = {
            "way": name,
            "batch": models[name][1],
            "images/s": round(batch / middle, 3),
            "TFLOP an image": round(flops / batch, 4),
            "of the matmul rate": round(flops / middle / top, 3),
            "times one by one": round(statistics.median(seconds[ALONE]) / middle, 2),
            "largest difference of 255": round(float((images[ALONE] - images[name]).abs().max()) * 127.5, 2),
        }
        print(json.dumps(row))


if __name__ == "__main__":
    typer.run(main)
