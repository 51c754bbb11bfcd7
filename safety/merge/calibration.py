"""Calibration: what the adapted layers of the base model see, gathered once with all LoRA off.

The statistics are enough for every form of Co-Merge, so that a search over its parameters never runs the model
for them again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from safety.base import Config
from safety.families.family import ModelFamily
from safety.gates import PromptMoments
from safety.lora.weights import LoraLayer, LoraWeights
from safety.merge.method import check_experts
from safety.merge.probes import NoisyBatch, Probes, unsafe_batches
from safety.tensor_format import Head, TensorFormat, Tensors

FORMAT = TensorFormat(
    name="safetydpo-calibration-2",
    key="calibration",
    misfit="holds no calibration",
    field="calibration",
    fix="calibrate again",
)
LAYER_TENSORS = ("votes", "signal", "mean_input", "active_inputs")
CHUNK_SIGNALS = 8_000_000


class CalibrationConfig(Config):
    """What the layers are shown."""

    pairs_per_category: int = Field(8, gt=0, description="unsafe prompts of each category, from the training split")
    timesteps: tuple[float, ...] = Field(
        (0.999, 0.8, 0.55, 0.3), min_length=1, description="shares of the noise schedule"
    )
    batch: int = Field(32, gt=0)


@dataclass(frozen=True)
class LayerStatistics:
    """What one adapted layer saw over ``count`` inputs (one for each token, prompt and timestep)."""

    votes: Tensor
    """fp32 [N, outputs]: inputs on which expert i's |(dW_i x)_j| is the largest; equals go to the lowest index."""
    signal: Tensor
    """fp32 [N, outputs]: mean |(dW_i x)_j|."""
    mean_input: Tensor
    """fp32 [inputs]: mean |x_k|."""
    active_inputs: Tensor
    """fp32 [inputs]: inputs with x_k != 0."""
    ties: int
    """(input, row) pairs whose largest signal is shared by several experts and is not zero."""
    count: int


@dataclass(frozen=True)
class Calibration:
    """The statistics of every adapted layer, for experts in a fixed order."""

    experts: tuple[str, ...]
    layers: Mapping[str, LayerStatistics]
    texts: PromptMoments
    """What the layers called ``text_layers`` see."""
    text_layers: tuple[str, ...]

    def save(self, path: Path) -> None:
        """Write the statistics as one safetensors file."""
        tensors = {f"{name}|{key}": getattr(layer, key) for name, layer in self.layers.items() for key in LAYER_TENSORS}
        tensors |= {f"texts|{key}": value for key, value in self.texts._asdict().items()}
        counts = {name: {"ties": layer.ties, "count": layer.count} for name, layer in self.layers.items()}
        FORMAT.write(path, tensors, {"experts": self.experts, "counts": counts, "text_layers": self.text_layers})


def load_calibration(path: Path) -> Calibration:
    """Read what ``Calibration.save`` wrote; raise ArtifactFormatError when the file is something else."""
    return FORMAT.read(path, _build)


def _build(head: Head, tensors: Tensors) -> Calibration:
    layers = {
        name: LayerStatistics(
            **{key: tensors[f"{name}|{key}"] for key in LAYER_TENSORS}, ties=counts["ties"], count=counts["count"]
        )
        for name, counts in head["counts"].items()
    }
    texts = PromptMoments(unsafe=tensors["texts|unsafe"], preserved=tensors["texts|preserved"])
    return Calibration(tuple(head["experts"]), layers, texts, tuple(head["text_layers"]))


class _LayerGauge:
    """Sums up one layer's statistics batch by batch, in fp64 so that the order of batches hardly matters."""

    def __init__(self, layers: list[LoraLayer]) -> None:
        self.layers = layers
        outputs, inputs = layers[0].up.shape[0], layers[0].down.shape[1]
        self.votes = torch.zeros(len(layers), outputs, dtype=torch.float64)
        self.signal = torch.zeros(len(layers), outputs, dtype=torch.float64)
        self.input = torch.zeros(inputs, dtype=torch.float64)
        self.active = torch.zeros(inputs, dtype=torch.float64)
        self.ties = 0
        self.count = 0

    def see(self, inputs: Tensor) -> None:
        """Take in inputs [..., K]."""
        flat = inputs.detach().float().flatten(0, -2)
        self.input += flat.abs().sum(dim=0).double().cpu()
        self.active += (flat != 0).sum(dim=0).double().cpu()
        self.count += len(flat)
        rows = max(1, CHUNK_SIGNALS // self.votes.numel())
        for start in range(0, len(flat), rows):
            self._compare(flat[start : start + rows])

    def _compare(self, inputs: Tensor) -> None:
        signals = torch.stack(
            [(inputs @ layer.down.to(inputs.device).T @ layer.up.to(inputs.device).T).abs() for layer in self.layers]
        )
        best = signals.amax(dim=0, keepdim=True)
        voting = best > 0
        won = torch.zeros_like(signals).scatter_(0, signals.argmax(dim=0, keepdim=True), 1.0) * voting
        self.votes += won.sum(dim=1).double().cpu()
        self.signal += signals.sum(dim=1).double().cpu()
        self.ties += int((((signals == best) & voting).sum(dim=0) > 1).sum())

    def statistics(self) -> LayerStatistics:
        """Return what was gathered."""
        count = max(1, self.count)
        return LayerStatistics(
            votes=self.votes.float(),
            signal=(self.signal / count).float(),
            mean_input=(self.input / count).float(),
            active_inputs=self.active.float(),
            ties=self.ties,
            count=self.count,
        )


@torch.no_grad()
def gather(
    model: ModelFamily, experts: Mapping[str, LoraWeights], batches: Iterator[NoisyBatch], texts: PromptMoments
) -> Calibration:
    """Run the base model, which must have no LoRA attached, over the batches and gather each layer's statistics."""
    check_experts(experts)
    names = list(next(iter(experts.values())))
    gauges = {name: _LayerGauge([expert[name] for expert in experts.values()]) for name in names}
    with ExitStack() as hooks:
        for name, gauge in gauges.items():
            hooks.enter_context(_hook(model, name, gauge))
        for batch in batches:
            model.predict(batch.noisy, batch.timesteps, batch.conditioning)
    layers = {name: gauge.statistics() for name, gauge in gauges.items()}
    return Calibration(tuple(experts), layers, texts, tuple(n for n in names if n.endswith(model.text_targets)))


def _hook(model: ModelFamily, name: str, gauge: _LayerGauge) -> Any:
    def see(_module: Any, arguments: tuple[Tensor, ...]) -> None:
        gauge.see(arguments[0])

    hook: Callable[..., Any] = model.denoiser.get_submodule(name).register_forward_pre_hook
    return hook(see)


def calibrate(
    model: ModelFamily,
    experts: Mapping[str, LoraWeights],
    probes: Probes,
    texts: PromptMoments,
    config: CalibrationConfig,
    seed: int,
) -> Calibration:
    """Gather the statistics on the probes' unsafe prompts, at each timestep of the config's grid; ``texts`` join them."""
    batches = unsafe_batches(model, probes, config.timesteps, config.batch, seed, "calibration")
    return gather(model, experts, batches, texts)
