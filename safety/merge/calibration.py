"""Calibration: statistics of the adapted layers' inputs in the base model, gathered once without any LoRA.

The statistics suffice for every form of Co-Merge, so that a search over its parameters need not run the model for them
again.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor, nn

from safety.base import Config
from safety.families.family import ModelFamily
from safety.gates import PromptMoments
from safety.lora.weights import LoraLayer, LoraWeights
from safety.merge.experts import check_experts
from safety.merge.probes import Probes, unsafe_batches
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
    """The prompts and timesteps on which the layers' inputs are observed."""

    pairs_per_category: int = Field(8, gt=0, description="unsafe prompts per category, from the training split")
    timesteps: tuple[float, ...] = Field(
        (0.999, 0.8, 0.55, 0.3), min_length=1, description="fractions of the noise schedule"
    )
    batch: int = Field(32, gt=0)


@dataclass(frozen=True)
class LayerStatistics:
    """Statistics of one adapted layer over ``count`` inputs (one per token, prompt and timestep)."""

    votes: Tensor
    """fp32 [N, outputs]: number of inputs on which expert i's |(dW_i x)_j| is largest; ties go to the lowest index."""
    signal: Tensor
    """fp32 [N, outputs]: mean |(dW_i x)_j|."""
    mean_input: Tensor
    """fp32 [inputs]: mean |x_k|."""
    active_inputs: Tensor
    """fp32 [inputs]: number of inputs with x_k != 0."""
    ties: int
    """Number of (input, row) pairs whose largest signal is above zero and shared by several experts."""
    count: int


@dataclass(frozen=True)
class Calibration:
    """The statistics of every adapted layer, for experts in a fixed order."""

    experts: tuple[str, ...]
    layers: Mapping[str, LayerStatistics]
    moments: PromptMoments
    """Second moments of the prompts' states, the inputs of ``text_layers``; ``no_moments`` where there is no such layer."""
    text_layers: tuple[str, ...]
    """The adapted layers that read the prompt."""

    def save(self, path: Path) -> None:
        """Write the statistics as one safetensors file."""
        tensors = {f"{name}|{key}": getattr(layer, key) for name, layer in self.layers.items() for key in LAYER_TENSORS}
        tensors |= {f"texts|{key}": value for key, value in self.moments._asdict().items()}
        counts = {name: {"ties": layer.ties, "count": layer.count} for name, layer in self.layers.items()}
        FORMAT.write(path, tensors, {"experts": self.experts, "counts": counts, "text_layers": self.text_layers})


def load_calibration(path: Path) -> Calibration:
    """Read a file of ``Calibration.save``; raise ArtifactFormatError when it is something else."""
    return FORMAT.read(path, _build)


def _build(head: Head, tensors: Tensors) -> Calibration:
    layers = {
        name: LayerStatistics(
            **{key: tensors[f"{name}|{key}"] for key in LAYER_TENSORS}, ties=counts["ties"], count=counts["count"]
        )
        for name, counts in head["counts"].items()
    }
    moments = PromptMoments(unsafe=tensors["texts|unsafe"], preserved=tensors["texts|preserved"])
    return Calibration(tuple(head["experts"]), layers, moments, tuple(head["text_layers"]))


class _LayerObserver:
    """Accumulates one layer's statistics batch by batch, in fp64 so that the order of batches hardly matters.

    All of it stays on the model's device until the end: a layer that waits for a copy holds the next one up.
    """

    def __init__(self, layers: list[LoraLayer], device: torch.device) -> None:
        self.layers = [LoraLayer(layer.down.to(device), layer.up.to(device)) for layer in layers]
        outputs, inputs = layers[0].up.shape[0], layers[0].down.shape[1]

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=device)

        self.votes, self.signal = zeros(len(layers), outputs), zeros(len(layers), outputs)
        self.input, self.active = zeros(inputs), zeros(inputs)
        self.ties = torch.zeros((), dtype=torch.int64, device=device)
        self.count = 0

    def observe(self, _module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        """Add the layer's inputs [..., K] to the statistics, as a hook before its forward pass."""
        flat = arguments[0].detach().float().flatten(0, -2)
        self.input += flat.abs().sum(dim=0)
        self.active += (flat != 0).sum(dim=0)
        self.count += len(flat)
        rows = max(1, CHUNK_SIGNALS // self.votes.numel())
        for start in range(0, len(flat), rows):
            self._compare(flat[start : start + rows])

    def _compare(self, inputs: Tensor) -> None:
        signals = torch.stack([(inputs @ layer.down.T @ layer.up.T).abs() for layer in self.layers])
        best = signals.amax(dim=0, keepdim=True)
        voting = best > 0
        won = torch.zeros_like(signals).scatter_(0, signals.argmax(dim=0, keepdim=True), 1.0) * voting
        self.votes += won.sum(dim=1)
        self.signal += signals.sum(dim=1)
        self.ties += (((signals == best) & voting).sum(dim=0) > 1).sum()

    def statistics(self) -> LayerStatistics:
        """Return the statistics of all observed inputs."""
        count = max(1, self.count)
        return LayerStatistics(
            votes=self.votes.float().cpu(),
            signal=(self.signal / count).float().cpu(),
            mean_input=(self.input / count).float().cpu(),
            active_inputs=self.active.float().cpu(),
            ties=int(self.ties),
            count=self.count,
        )


@torch.no_grad()
def calibrate(
    model: ModelFamily,
    experts: Mapping[str, LoraWeights],
    probes: Probes,
    moments: PromptMoments,
    config: CalibrationConfig,
    seed: int,
) -> Calibration:
    """Gather each layer's statistics on the probes' unsafe prompts, noised at each timestep of the config's grid.

    Args:
        model: The base model, which must have no LoRA attached.
        experts: The adapters whose layers are observed.
        probes: The prompts and latents.
        moments: Those of the prompts' states, which are added.
        config: The timesteps and the batch.
        seed: The run's seed, from which the noise is drawn.
    """
    check_experts(experts)
    names = list(next(iter(experts.values())))
    observers = {name: _LayerObserver([expert[name] for expert in experts.values()], model.device) for name in names}
    with ExitStack() as hooks:
        for name, observer in observers.items():
            layer = model.denoiser.get_submodule(name)
            hooks.enter_context(layer.register_forward_pre_hook(observer.observe))
        for batch in unsafe_batches(model, probes, config.timesteps, config.batch, seed, "calibration"):
            model.predict(batch.noisy, batch.timesteps, batch.conditioning)
    layers = {name: observer.statistics() for name, observer in observers.items()}
    text_layers = tuple(name for name in names if name.endswith(model.text_targets))
    return Calibration(tuple(experts), layers, moments, text_layers)
