"""Where the time of a training step and of a rendering batch goes, by torch's profiler.

    python -m benchmarks.profile_step --size pico
    python -m benchmarks.profile_step --size sd15 --device cuda --dtype bfloat16

Prints, of each, the share of every kind of operation in the time of all, the counted TFLOP, and the share of the measured rate of
the fastest matrix product (of the FLOP that products, convolutions and attentions make). Weights are random but for ``pico``.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Annotated, Any

import torch
import typer
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.machine import describe, matmul_tflops, synchronise
from benchmarks.render import make_model, sampler
from benchmarks.train_step import make, tflops
from safety.precision import computes_bf16

KINDS: dict[str, tuple[str, ...]] = {
    "attention": ("attention",),
    "convolution": ("convolution", "conv2d", "cudnn", "slow_conv"),
    "matrix product": ("addmm", "aten::mm", "bmm", "gemm", "linear", "matmul"),
    "normalisation": ("group_norm", "layer_norm", "NormKernel"),
    "activation": ("silu", "gelu", "sigmoid", "softmax"),
    "copy and shape": (
        "copy",
        "clone",
        "cat",
        "contiguous",
        "to_copy",
        "transpose",
        "permute",
        "upsample",
        "index",
        "Memcpy",
    ),
    "addition and other sums": ("add", "mul", "sub", "div", "sum", "mean", "sqrt", "pow", "elementwise", "reduce"),
}
"""Parts of operations' names, by kind; the first kind that fits counts."""
OTHER = "other"


OPTIMIZER = "optimizer"
UPDATE = "Optimizer.step"
"""How torch's profiler calls what an optimizer's update runs."""


def kind_of(name: str) -> str:
    """Return an operation's kind by its name."""
    return next((kind for kind, parts in KINDS.items() if any(part in name for part in parts)), OTHER)


def shares(work: Callable[[], Any], device: str) -> tuple[dict[str, float], float]:
    """Return each kind's share of the operations' own time, largest first, and the seconds of one run without the profiler."""
    work()
    synchronise(device)
    started = time.perf_counter()
    work()
    synchronise(device)
    seconds = time.perf_counter() - started
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]
    with profile(activities=activities) as profiler:
        work()
        synchronise(device)
    found: dict[str, float] = defaultdict(float)
    for event in profiler.events():
        # Operations alone, which have the time of the kernels that they start: kernels' own names differ by card.
        if event.device_type == DeviceType.CPU:
            own = event.self_device_time_total if device == "cuda" else event.self_cpu_time_total
            found[OPTIMIZER if _in_update(event) else kind_of(event.name)] += own
    total = sum(found.values())
    return {kind: found[kind] / total for kind in sorted(found, key=lambda kind: -found[kind])}, seconds


def _in_update(event: Any) -> bool:
    """Return whether an operation is part of an optimizer's update, whose sums and products are those of other parts too."""
    while event is not None:
        if event.name.startswith(UPDATE):
            return True
        event = event.cpu_parent
    return False


def main(
    size: Annotated[str, typer.Option(help="pico or sd15")] = "pico",
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    dtype: str = "float32",
    pairs: int = 10,
    batch: Annotated[int, typer.Option(help="images of the rendering")] = 16,
    steps: int = 4,
) -> None:
    """Profile both and print one JSON line each."""
    torch.set_num_threads(1 if device == "cpu" else torch.get_num_threads())
    kind: torch.dtype = getattr(torch, dtype)
    # An expert's passes are in bf16 where the device computes in it, whatever the base is stored in.
    training = torch.bfloat16 if computes_bf16(torch.device(device)) else kind
    tops = {each: matmul_tflops(device, each) for each in {kind, training}}
    typer.echo(json.dumps({"size": size, "dtype": dtype, **describe(device)}))
    works = {
        f"training step of {pairs} pairs": (training, make("ours", size, device, kind, pairs, 8)),
        f"rendering {batch} images in {steps} steps": (
            kind,
            sampler(make_model(size, kind, device), size, batch, batch, steps, 2.5),
        ),
    }
    for name, (computed, work) in works.items():
        counted, top = tflops(work), tops[computed]
        found, seconds = shares(work, device)
        row = {
            "what": name,
            "computes in": str(computed).removeprefix("torch."),
            "matmul TFLOP/s": round(top, 3),
            "seconds": round(seconds, 4),
            "TFLOP": round(counted, 4),
            "share of matmul rate": round(counted / seconds / top, 3),
            **{kind: round(share, 3) for kind, share in found.items()},
        }
        typer.echo(json.dumps(row))


if __name__ == "__main__":
    typer.run(main)
