"""CMMD against the paper's own formula, written out pair by pair."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from safety.evaluation.cmmd import cmmd


def written_out(first: Tensor, second: Tensor) -> float:
    """As the paper's code: gamma = 1 / (2 * 10^2), biased means over all pairs, times 1000."""
    gamma = 1.0 / (2 * 10.0**2)

    def mean(left: Tensor, right: Tensor) -> float:
        values = [math.exp(-gamma * float((x @ x) - 2 * (x @ y) + (y @ y))) for x in left for y in right]
        return sum(values) / len(values)

    return 1000.0 * (mean(first, first) + mean(second, second) - 2 * mean(first, second))


@pytest.mark.parametrize(("count", "others"), [(7, 7), (9, 5)])
def test_it_is_the_papers_formula(count: int, others: int) -> None:
    draw = torch.Generator().manual_seed(count)
    first = torch.randn(count, 6, generator=draw, dtype=torch.float64)
    second = torch.randn(others, 6, generator=draw, dtype=torch.float64) + 0.5
    unit = [rows / rows.norm(dim=1, keepdim=True) for rows in (first, second)]
    assert cmmd(first, second) == pytest.approx(written_out(*unit), abs=1e-9)
    assert cmmd(3.0 * first, second) == pytest.approx(cmmd(first, second)), "lengths do not count"
    assert cmmd(first, first) == pytest.approx(0.0, abs=1e-9)
    assert cmmd(first, second) > 0
