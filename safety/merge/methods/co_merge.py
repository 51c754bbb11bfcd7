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

from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from safety.errors import ConfigError
from safety.gates import GateConfig
from safety.lora.weights import LoraLayer, LoraWeights
from safety.merge.calibration import Calibration, LayerStatistics
from safety.merge.experts import check_experts, stack
from safety.merge.method import CALIBRATION, MergeResult, MethodConfig, Need, base_report, merge_methods
from safety.merge.selection import Selection, select_hard, select_soft
from safety.merge.truncation import truncate_all

BlockGroup = Literal["down", "mid", "up"]
BLOCK_GROUPS: tuple[BlockGroup, ...] = ("down", "mid", "up")


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
    form: Literal["exact", "svd"] = Field("exact", description="the exact merge, or one of truncated rank")
    svd_rank: int | None = Field(None, gt=0, description="rank of the form 'svd'")

    @model_validator(mode="after")
    def _rank_given(self) -> CoMergeConfig:
        if (self.form == "svd") != (self.svd_rank is not None):
            raise ValueError("give svd_rank with form 'svd', and only then")
        return self


def block_group(name: str) -> BlockGroup | None:
    """Return the block group of a UNet's module by its dotted name; None for a module of no group."""
    for group in BLOCK_GROUPS:
        if name.startswith((f"{group}_block", f"{group}_blocks")):
            return group
    return None


def scores(layers: list[LoraLayer], statistics: LayerStatistics, config: CoMergeConfig) -> Tensor:
    """Return the experts' scores: [N, outputs] for rows, [N, outputs, inputs] for weights."""
    if config.granularity != "weight":
        return statistics.votes if config.score == "vote" else statistics.signal
    magnitude = torch.stack([layer.delta().abs() for layer in layers])
    if config.score == "sum":
        return magnitude * statistics.mean_input
    # No pass over the inputs is needed. |x_k| is common to all experts, so for every input with x_k != 0 the
    # largest |dW_i[j,k]| |x_k| is at the largest |dW_i[j,k]|: multiplying by one positive number keeps the order
    # and the ties. Hence the winner is the same for all inputs, and gets the vote of each one with x_k != 0. An input
    # with x_k = 0, or a weight that is zero in every expert, gives no signal and no vote.
    first = magnitude.argmax(dim=0, keepdim=True)
    votes = torch.zeros_like(magnitude).scatter_(0, first, 1.0)
    return votes * (magnitude.amax(dim=0, keepdim=True) > 0) * statistics.active_inputs


class CoMerge:
    """Takes from each expert the rows or weights on which it is the most active."""

    label = "Co-Merge"
    config_type: type[MethodConfig] = CoMergeConfig
    needs: frozenset[Need] = frozenset({CALIBRATION})

    def __call__(
        self, experts: Mapping[str, LoraWeights], statistics: Calibration | None, config: CoMergeConfig, /
    ) -> MergeResult:
        """Return the merge; raise ConfigError for missing statistics, those of other experts, or an unknown lambda."""
        check_experts(experts)
        calibration = _check(experts, statistics, config)
        gates = _gates(calibration, config)
        merged = {
            name: _merge_layer(name, experts, calibration.layers[name], config, gates.get(name))
            for name in next(iter(experts.values()))
        }
        weights = LoraWeights({name: layer for name, (layer, _) in merged.items()})
        errors, overall = dict.fromkeys(weights, 0.0), 0.0
        if config.svd_rank is not None:
            weights, errors, overall = truncate_all(weights, config.svd_rank)
        report = base_report(experts, weights, config)
        report |= _selection_report(list(experts), {name: selection for name, (_, selection) in merged.items()})
        report["calibration"] = {
            "inputs": sum(layer.count for layer in calibration.layers.values()),
            "ties": sum(layer.ties for layer in calibration.layers.values()),
        }
        report["svd_error"] = {"overall": overall, "layers": errors}
        return MergeResult(weights, report)


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


def _gates(calibration: Calibration, config: CoMergeConfig) -> dict[str, Tensor]:
    """Return the experts' gates [N, inputs, inputs] by layer, for the layers that are merged by inputs."""
    if config.granularity != "input":
        return {}
    gates = calibration.moments.gates(config.gate)
    return dict.fromkeys(calibration.text_layers, gates)


def _merge_layer(
    name: str,
    experts: Mapping[str, LoraWeights],
    statistics: LayerStatistics,
    config: CoMergeConfig,
    gates: Tensor | None,
) -> tuple[LoraLayer, Selection]:
    layers = [expert[name] for expert in experts.values()]
    group = block_group(name)
    factor = config.block_factors.get(group, 1.0) if group else 1.0
    lambdas = [factor * config.lambdas.get(expert, 1.0) for expert in experts]
    if gates is not None:
        gated = [layer.gated(gate) for layer, gate in zip(layers, gates, strict=True)]
        return stack(gated, lambdas), Selection(gates.diagonal(dim1=1, dim2=2), 0)
    found = scores(layers, statistics, config)
    selection = select_hard(found) if config.selection == "hard" else select_soft(found, config.tau, config.temperature)
    shares = [share * value for share, value in zip(selection.coefficients, lambdas, strict=True)]
    if config.granularity != "weight":
        return stack(layers, shares), selection
    dense = torch.stack([share * layer.delta() for share, layer in zip(shares, layers, strict=True)]).sum(dim=0)
    return _factor_exactly(dense), selection


def _factor_exactly(dense: Tensor) -> LoraLayer:
    """Return dW [outputs, inputs] as a LoRA layer of full rank: one factor is the identity, so nothing is rounded."""
    outputs, inputs = dense.shape
    if inputs <= outputs:
        return LoraLayer(torch.eye(inputs), dense)
    return LoraLayer(dense, torch.eye(outputs))


def _selection_report(experts: list[str], selections: Mapping[str, Selection]) -> dict[str, Any]:
    cells = {name: selection.coefficients[0].numel() for name, selection in selections.items()}
    shares = {name: selection.coefficients.flatten(1).double().mean(dim=1) for name, selection in selections.items()}
    total = sum(cells.values())
    overall = torch.stack([share * (cells[name] / total) for name, share in shares.items()]).sum(dim=0)
    return {
        "shares": {
            "overall": dict(zip(experts, overall.tolist(), strict=True)),
            "layers": {name: dict(zip(experts, share.tolist(), strict=True)) for name, share in shares.items()},
        },
        "ties": {
            "overall": sum(selection.ties for selection in selections.values()),
            "cells": total,
            "layers": {name: selection.ties for name, selection in selections.items()},
        },
    }


merge_methods.register("co-merge")(CoMerge())
