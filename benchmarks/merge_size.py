"""How long does a candidate of the merge search take to assemble at a real model's size, and how large is it?

    python -m benchmarks.merge_size --model sdxl --output docs/benchmarks/merge_size.json

Random experts with the layer shapes of a full-size UNet and random moments of prompt states: assembling a candidate
(statistics, selection, factors) depends on sizes alone. "before" restates what a candidate cost: a generalised
eigendecomposition per expert and candidate, and one product with the gate per layer and expert; one expert's is measured,
and multiplied by their number. Seconds are the processor's own on a CPU, all threads together, since other programs may run
beside it; on a GPU they are the clock's.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from scipy.linalg import eigh

from safety.gates import GateConfig, PromptMoments
from safety.lora.weights import LoraLayer, LoraWeights
from safety.merge.calibration import Calibration, LayerStatistics
from safety.merge.experts import stack
from safety.merge.methods.co_merge import CoMerge, CoMergeConfig
from safety.merge.truncation import truncate
from safety.merge.weight_form import dense_bytes

MODELS: dict[str, dict[str, Any]] = {
    "sd15": {"cross_attention_dim": 768, "attention_head_dim": 8},
    "sdxl": {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "block_out_channels": (320, 640, 1280),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
    },
}
TEXT = ("attn2.to_k", "attn2.to_v")
TARGETS = {"text": TEXT, "attention": ("to_q", "to_k", "to_v", "to_out.0")}
CATEGORIES = 7
TOKENS = 4096


def shapes(model: str, targets: tuple[str, ...]) -> dict[str, tuple[int, int]]:
    """Return (outputs, inputs) of the adapted layers of a full-size UNet, which is never in memory."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(**MODELS[model])
    return {
        name: (module.out_features, module.in_features)
        for name, module in unet.named_modules()
        if isinstance(module, torch.nn.Linear) and name.endswith(targets)
    }


def make_experts(sizes: dict[str, tuple[int, int]], rank: int) -> dict[str, LoraWeights]:
    draw = torch.Generator().manual_seed(0)
    return {
        f"expert-{index}": LoraWeights(
            {
                name: LoraLayer(
                    torch.randn(rank, inputs, generator=draw), torch.randn(outputs, rank, generator=draw) / rank
                )
                for name, (outputs, inputs) in sizes.items()
            }
        )
        for index in range(CATEGORIES)
    }


def make_calibration(sizes: dict[str, tuple[int, int]], experts: dict[str, LoraWeights]) -> Calibration:
    draw = torch.Generator().manual_seed(1)
    layers = {}
    for name, (outputs, inputs) in sizes.items():
        votes = torch.rand(len(experts), outputs, generator=draw)
        layers[name] = LayerStatistics(votes, votes, torch.ones(inputs), torch.ones(inputs), 0, 1)
    text = tuple(name for name in sizes if name.endswith(TEXT))
    width = sizes[text[0]][1]
    moments = []
    for _ in range(len(experts) + 1):
        # Directions that fall off, as those of a text encoder's states do.
        states = torch.randn(TOKENS, width, generator=draw) * torch.logspace(0, -2, width)
        moments.append((states.T @ states).double() / TOKENS)
    return Calibration(tuple(experts), layers, PromptMoments(torch.stack(moments[:-1]), moments[-1]), text)


def gate_before(experts: dict[str, LoraWeights], calibration: Calibration, config: GateConfig) -> list[LoraLayer]:
    """Gate one expert's layers as it was done before: the gate whole, by its eigenvectors, and a product per layer."""
    own, preserved = calibration.moments
    total = own.sum(dim=0) + config.benign * len(own) * preserved
    total += config.ridge * total.diagonal().mean() * torch.eye(len(total), dtype=total.dtype)
    shares, vectors = (torch.from_numpy(found) for found in eigh(own[0].numpy(), total.numpy()))
    gate = (total @ (vectors * shares) @ vectors.T).float()
    expert = next(iter(experts.values()))
    return [expert[name].gated(gate) for name in calibration.text_layers]


def seconds(work: Callable[[], object], repeats: int, device: str) -> float:
    """Return the least time of several."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    times = []
    for _ in range(repeats):
        started = clock()
        work()
        if device != "cpu":
            torch.cuda.synchronize()
        times.append(clock() - started)
    return min(times)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    sizes = shapes(arguments.model, TARGETS[arguments.targets])
    experts = make_experts(sizes, arguments.rank)
    calibration = make_calibration(sizes, experts)
    method = CoMerge(arguments.device, keep=True)
    figures: dict[str, Any] = {
        "layers": len(sizes),
        "layers that read the prompt": len(calibration.text_layers),
        "stacked rank": CATEGORIES * arguments.rank,
        "dense matrices of granularity 'weight', MiB": round(dense_bytes(next(iter(experts.values()))) / 2**20, 1),
    }

    def candidate(granularity: str, benign: float = 1.0) -> Callable[[], object]:
        gate = GateConfig(benign=benign, directions=None)
        config = CoMergeConfig.model_validate({"granularity": granularity, "gate": gate})
        return lambda: method(experts, calibration, config)

    device = arguments.device
    figures["first candidate by inputs, s"] = seconds(candidate("input"), 1, device)
    figures["candidate by inputs, s"] = seconds(candidate("input", 2.0), 3, device)
    figures["candidate by rows, s"] = seconds(candidate("row"), 3, device)
    if not arguments.skip_before:
        gate = GateConfig(directions=None)
        one = seconds(lambda: gate_before(experts, calibration, gate), 1, "cpu")
        figures["candidate by inputs before, s"] = one * CATEGORIES
        figures["times faster"] = round(one * CATEGORIES / figures["candidate by inputs, s"], 1)
    largest = max(sizes, key=lambda name: sizes[name][0] * sizes[name][1])
    stacked = stack([expert[largest] for expert in experts.values()], [1.0] * CATEGORIES)
    figures["cut of the largest layer to rank 32, s"] = seconds(lambda: truncate(stacked, 32), 3, "cpu")
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=MODELS, default="sdxl")
    parser.add_argument("--targets", choices=TARGETS, default="text")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--device", default="cpu", help="where gates are computed")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--skip-before", action="store_true")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    figures = measure(arguments)
    for name, value in figures.items():
        print(f"{name:<50} {value:.3g}" if isinstance(value, float) else f"{name:<50} {value}")
    if arguments.output:
        settings = {name: value for name, value in vars(arguments).items() if name != "output"}
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else torch.backends.cpu.get_cpu_capability()
        document = {
            "machine": f"{platform.machine()}, {arguments.threads} thread(s), {device}",
            "versions": {name: version(name) for name in ("torch", "scipy", "diffusers")},
            "settings": settings,
            "figures": figures,
        }
        arguments.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
