"""Merging from its definition, by loops over every input, row and weight: what the merge tests compare with."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from safety.gates import PromptMoments
from safety.lora.weights import LoraLayer, LoraWeights
from safety.merge.methods.co_merge import CoMergeConfig


def random_weights(seed: int, shapes: Mapping[str, tuple[int, int]], rank: int = 3, size: float = 1.0) -> LoraWeights:
    generator = torch.Generator().manual_seed(seed)
    return LoraWeights(
        {
            name: LoraLayer(
                torch.randn(rank, inputs, generator=generator), size * torch.randn(outputs, rank, generator=generator)
            )
            for name, (outputs, inputs) in shapes.items()
        }
    )


def random_texts(experts: int, width: int, seed: int) -> PromptMoments:
    """Return second moments of a few random states of each expert and of benign ones."""
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(experts + 1, 9, width, generator=generator, dtype=torch.float64)
    moments = states.transpose(1, 2) @ states / 9
    return PromptMoments(moments[:-1], moments[-1])


def signal(delta: Tensor, x: Tensor, granularity: str) -> list[list[float]]:
    outputs, inputs = delta.shape
    if granularity == "row":
        return [[abs(sum(float(delta[j, k]) * float(x[k]) for k in range(inputs)))] for j in range(outputs)]
    return [[abs(float(delta[j, k])) * abs(float(x[k])) for k in range(inputs)] for j in range(outputs)]


def brute_scores(deltas: list[Tensor], inputs: Tensor, granularity: str, score: str) -> list[list[list[float]]]:
    """Return score[i][j][k] by a pass over every input; k is 0 alone for rows."""
    outputs = deltas[0].shape[0]
    width = 1 if granularity == "row" else deltas[0].shape[1]
    total = [[[0.0] * width for _ in range(outputs)] for _ in deltas]
    for x in inputs:
        signals = [signal(delta, x, granularity) for delta in deltas]
        for j in range(outputs):
            for k in range(width):
                values = [signals[i][j][k] for i in range(len(deltas))]
                for i, value in enumerate(values):
                    if score == "sum":
                        total[i][j][k] += value / len(inputs)
                    elif max(values) > 0 and i == values.index(max(values)):
                        total[i][j][k] += 1
    return total


def brute_merge(deltas: list[Tensor], inputs: Tensor, config: CoMergeConfig, lambdas: list[float]) -> Tensor:
    found = brute_scores(deltas, inputs, config.granularity, config.score)
    merged = torch.zeros_like(deltas[0])
    for j in range(merged.shape[0]):
        for k in range(merged.shape[1]):
            cell = [found[i][j][k if config.granularity == "weight" else 0] for i in range(len(deltas))]
            winner = cell.index(max(cell))
            if config.selection == "hard":
                parts = [1.0 if i == winner else 0.0 for i in range(len(deltas))]
            else:
                whole = sum(cell)
                shares = [value / whole if whole else 1 / len(cell) for value in cell]
                powers = [
                    math.exp(share / config.temperature) if share >= config.tau or i == winner else 0.0
                    for i, share in enumerate(shares)
                ]
                parts = [power / sum(powers) for power in powers]
            merged[j, k] = sum(
                part * value * float(delta[j, k]) for part, value, delta in zip(parts, lambdas, deltas, strict=True)
            )
    return merged
