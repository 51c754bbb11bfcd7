"""Co-Merge: from each expert the rows or weights on which it is the most active (SafetyDPO, arXiv:2412.10493).

The paper names the parts that are merged but not the computation. Ours, for expert i with dW_i = (alpha/r) B_i A_i and
a layer's inputs x on calibration prompts of all categories:

    signal_i[j](x)   = |(dW_i x)_j|              granularity "row" (an output neuron)
    signal_i[j,k](x) = |dW_i[j,k]| |x_k|         granularity "weight"
    score_i          = number of inputs on which i has the largest signal ("vote"), or its mean signal ("sum")
    merged           = lambda_i * factor(block) * dW_i of the best score ("hard"), or a softmax mixture ("soft")

A selection of outputs ignores an expert's effect on the prompts of another expert, and on benign ones. Hence a third
granularity of our own, "input", for layers that read the prompt: the directions of the input are divided among the
experts by the activity of their prompts along them (``safety.gates``), so that each expert acts on its own prompts with
all its rows. Layers that do not read the prompt are then merged by rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from safety.errors import ConfigError
from safety.gates import GateConfig
from safety.lora.weights import LoraLayer, LoraWeights
from safety.merge.calibration import Calibration, LayerStatistics
from safety.merge.experts import check_experts, stack
from safety.merge.input_form import InputForm
from safety.merge.method import CALIBRATION, MergeResult, MethodConfig, Need, base_report, merge_methods
from safety.merge.selection import Selection, select_hard, select_soft
from safety.merge.truncation import Truncated, overall_error, truncate
from safety.merge.weight_form import merge_by_weights, weight_select

BlockGroup = Literal["down", "mid", "up", "dual", "single"]
UNET_GROUPS: tuple[BlockGroup, ...] = ("down", "mid", "up")
GROUP_PREFIXES: dict[BlockGroup, tuple[str, ...]] = {
    "down": ("down_block.", "down_blocks."),
    "mid": ("mid_block.", "mid_blocks."),
    "up": ("up_block.", "up_blocks."),
    "dual": ("transformer_blocks.",),
    "single": ("single_transformer_blocks.",),
}
"""The starts of module names: a UNet's blocks, and the dual and single stream blocks of a transformer."""


class CoMergeConfig(MethodConfig):
    """The parameters of Co-Merge."""

    name: Literal["co-merge"] = "co-merge"
    granularity: Literal["row", "weight", "input"] = Field(
        "row",
        description="the unit of selection: an output row, a weight, or a direction of the prompt's states",
    )
    gate: GateConfig = Field(
        GateConfig(benign=1.0, directions=None), description="input: how the directions are divided"
    )
    score: Literal["vote", "sum"] = Field(
        "vote", description="count the inputs on which an expert wins, or average its signal"
    )
    selection: Literal["hard", "soft"] = Field("hard", description="the best expert alone, or a mixture")
    tau: float = Field(0.0, ge=0, lt=1, description="soft: minimum share of the score of an expert")
    temperature: float = Field(0.1, gt=0, description="soft: as it approaches 0 the selection becomes the hard one")
    lambdas: dict[str, float] = Field({}, description="factor on an expert's dW, by name; 1 where not named")
    block_factors: dict[BlockGroup, float] = Field({}, description="factor on a block group's dW; 1 where not named")
    max_rank: int | None = Field(
        64,
        gt=0,
        description="highest rank of a merged layer: what is higher is cut by SVD, and the report and the card state the "
        "error; None: the exact merge",
    )


def block_group(name: str) -> BlockGroup | None:
    """Return the block group of a denoiser's module by its dotted name; None for a module of no group."""
    return next((group for group, starts in GROUP_PREFIXES.items() if name.startswith(starts)), None)


def block_groups(layers: Iterable[str]) -> tuple[BlockGroup, ...]:
    """Return the groups whose factors are worth a search: a UNet's, or a transformer's where layers of both kinds are adapted.

    The factor of a single group would do what the lambdas together do.
    """
    found = {block_group(name) for name in layers}
    if found & set(UNET_GROUPS):
        return UNET_GROUPS
    present = tuple(group for group in GROUP_PREFIXES if group in found)
    return present if len(present) > 1 else ()


class MergedLayer(NamedTuple):
    """One merged layer, and what was chosen in it."""

    layer: Truncated
    cells: int
    """The number of rows, weights or directions that were shared out."""
    shares: Tensor
    """fp64 [N]: each expert's mean coefficient over the cells."""
    ties: int


class CoMerge:
    """Takes from each expert the rows or weights on which it is the most active."""

    label = "Co-Merge"
    config_type: type[MethodConfig] = CoMergeConfig
    needs: frozenset[Need] = frozenset({CALIBRATION})

    def __init__(self, device: str = "cpu", *, keep: bool = False) -> None:
        """Prepare for merging.

        Args:
            device: Where the gates of granularity "input" are computed.
            keep: Keep what the candidates of one search have in common, for the next call with the same experts.
        """
        self.device, self.keep = device, keep
        self._kept: tuple[object, object, float, InputForm] | None = None

    def __call__(
        self, experts: Mapping[str, LoraWeights], statistics: Calibration | None, config: CoMergeConfig, /
    ) -> MergeResult:
        """Return the merge; raise ConfigError for missing statistics, those of other experts, or an unknown lambda."""
        check_experts(experts)
        calibration = _check(experts, statistics, config)
        names = list(next(iter(experts.values())))
        merged = self._by_inputs(experts, calibration, config) if config.granularity == "input" else {}
        for name in names:
            if name not in merged:
                merged[name] = _merge_layer(name, experts, calibration.layers[name], config)
        weights = LoraWeights({name: found.layer.layer for name, found in merged.items()})
        report = base_report(experts, weights, config)
        report |= _selection_report(list(experts), {name: merged[name] for name in names})
        report["calibration"] = {
            "inputs": sum(layer.count for layer in calibration.layers.values()),
            "ties": sum(layer.ties for layer in calibration.layers.values()),
        }
        report["svd_error"] = {
            "overall": overall_error(found.layer for found in merged.values()),
            "layers": {name: merged[name].layer.error for name in names},
        }
        return MergeResult(weights, report)

    def _by_inputs(
        self, experts: Mapping[str, LoraWeights], calibration: Calibration, config: CoMergeConfig
    ) -> dict[str, MergedLayer]:
        """Return the layers that read the prompt, merged by inputs; none where no adapted layer reads it alone."""
        if not calibration.text_layers:
            return {}
        if config.gate.directions is not None:
            return _by_directions(experts, calibration, config, self.device)
        form = self._input_form(experts, calibration, config.gate.ridge)
        coefficients = form.coefficients(config.gate.benign)
        found = {}
        for name, down in form.downs(config.gate.benign).items():
            layers = [expert[name] for expert in experts.values()]
            ups = [layer.up * value for layer, value in zip(layers, _lambdas(name, experts, config), strict=True)]
            found[name] = _merged(LoraLayer(down, torch.cat(ups, dim=1)), Selection(coefficients, 0), config)
        return found

    def _input_form(self, experts: Mapping[str, LoraWeights], calibration: Calibration, ridge: float) -> InputForm:
        if (
            self._kept is not None
            and self._kept[0] is experts
            and self._kept[1] is calibration
            and self._kept[2] == ridge
        ):
            return self._kept[3]
        form = InputForm(experts, calibration.text_layers, calibration.moments, ridge, self.device)
        if self.keep:
            self._kept = (experts, calibration, ridge, form)
        return form


def _check(experts: Mapping[str, LoraWeights], statistics: Calibration | None, config: CoMergeConfig) -> Calibration:
    if statistics is None or statistics.experts != tuple(experts):
        held = "none are given" if statistics is None else f"they are of {', '.join(statistics.experts)}"
        raise ConfigError(
            f"Co-Merge of {', '.join(experts)} needs their calibration statistics, and {held}",
            field="statistics",
            fix="calibrate on exactly these experts, in this order",
        )
    missing = sorted(set(next(iter(experts.values()))) - set(statistics.layers))
    if missing:
        raise ConfigError(
            f"the calibration lacks the layer {missing[0]}", field="statistics", fix="calibrate again on these experts"
        )
    unknown = sorted(set(config.lambdas) - set(experts))
    if unknown:
        raise ConfigError(
            f"there is no expert {unknown[0]!r}", field=f"lambdas.{unknown[0]}", fix=f"use one of: {', '.join(experts)}"
        )
    return statistics


def _by_directions(
    experts: Mapping[str, LoraWeights], calibration: Calibration, config: CoMergeConfig, device: str
) -> dict[str, MergedLayer]:
    """Return the layers that read the prompt, merged by gates of a few directions each."""
    gates = calibration.moments.gates(config.gate, device=device)
    selection = Selection(gates.diagonal(dim1=1, dim2=2), 0)
    found = {}
    for name in calibration.text_layers:
        gated = [expert[name].gated(gate) for expert, gate in zip(experts.values(), gates, strict=True)]
        found[name] = _merged(stack(gated, _lambdas(name, experts, config)), selection, config)
    return found


def _lambdas(name: str, experts: Mapping[str, LoraWeights], config: CoMergeConfig) -> list[float]:
    """Return the experts' factors on a layer."""
    group = block_group(name)
    factor = config.block_factors.get(group, 1.0) if group else 1.0
    return [factor * config.lambdas.get(expert, 1.0) for expert in experts]


def _merged(layer: LoraLayer, selection: Selection, config: CoMergeConfig) -> MergedLayer:
    """Return a merged layer, cut to the highest rank."""
    cut = truncate(layer, layer.rank if config.max_rank is None else config.max_rank)
    cells = selection.coefficients[0].numel()
    return MergedLayer(cut, cells, selection.coefficients.flatten(1).double().mean(dim=1), selection.ties)


def _merge_layer(
    name: str, experts: Mapping[str, LoraWeights], statistics: LayerStatistics, config: CoMergeConfig
) -> MergedLayer:
    """Merge one layer by its rows or weights."""
    layers = [expert[name] for expert in experts.values()]
    lambdas = _lambdas(name, experts, config)

    def choose(scores: Tensor) -> Selection:
        return (
            select_hard(scores) if config.selection == "hard" else select_soft(scores, config.tau, config.temperature)
        )

    if config.granularity == "weight":
        select = weight_select(choose, config.score, statistics.mean_input, statistics.active_inputs)
        found = merge_by_weights(name, layers, lambdas, select, config.max_rank)
        return MergedLayer(found.layer, layers[0].up.shape[0] * layers[0].down.shape[1], found.shares, found.ties)
    selection = choose(statistics.votes if config.score == "vote" else statistics.signal)
    shares = [share * value for share, value in zip(selection.coefficients, lambdas, strict=True)]
    return _merged(stack(layers, shares), selection, config)


def _selection_report(experts: list[str], layers: Mapping[str, MergedLayer]) -> dict[str, Any]:
    total = sum(found.cells for found in layers.values())
    overall = torch.stack([found.shares * (found.cells / total) for found in layers.values()]).sum(dim=0)
    return {
        "shares": {
            "overall": dict(zip(experts, overall.tolist(), strict=True)),
            "layers": {name: dict(zip(experts, found.shares.tolist(), strict=True)) for name, found in layers.items()},
        },
        "ties": {
            "overall": sum(found.ties for found in layers.values()),
            "cells": total,
            "layers": {name: found.ties for name, found in layers.items()},
        },
    }


merge_methods.register("co-merge")(CoMerge())
