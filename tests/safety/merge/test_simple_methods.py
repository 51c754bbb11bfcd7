"""Average, task arithmetic and truncation against sums of dense matrices."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from merge_oracle import random_weights

from safety.errors import ConfigError
from safety.merge import merge_methods
from safety.merge.methods.average import Average, AverageConfig
from safety.merge.methods.task_arithmetic import TaskArithmetic, TaskArithmeticConfig
from safety.merge.truncation import truncate

SHAPES = {"mid_block.to_q": (6, 5), "up_blocks.0.to_k": (4, 7)}


@settings(max_examples=20, deadline=None)
@given(count=st.integers(1, 5), scale=st.floats(0, 3))
def test_average_and_task_arithmetic_are_exact(count: int, scale: float) -> None:
    experts = {f"e{index}": random_weights(index, SHAPES, rank=1 + index) for index in range(count)}
    mean = Average()(experts, None, AverageConfig()).weights
    summed = TaskArithmetic()(experts, None, TaskArithmeticConfig(scale=scale)).weights
    for name in SHAPES:
        total = torch.stack([expert[name].delta() for expert in experts.values()]).sum(0)
        torch.testing.assert_close(mean[name].delta(), total / count, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(summed[name].delta(), total * scale, rtol=1e-4, atol=1e-5)
        assert summed[name].rank == sum(range(1, count + 1))


def test_report_counts_parameters_and_ranks() -> None:
    experts = {"a": random_weights(0, SHAPES, rank=2), "b": random_weights(1, SHAPES, rank=3)}
    report = Average()(experts, None, AverageConfig()).report
    assert report["ranks"] == {"mid_block.to_q": 5, "up_blocks.0.to_k": 5}
    assert report["parameters"] == 5 * (6 + 5) + 5 * (4 + 7)
    assert report["experts"] == ["a", "b"]


def test_truncation_is_the_best_approximation() -> None:
    layer = random_weights(0, SHAPES, rank=5)["mid_block.to_q"]
    dense = layer.delta()
    left, values, right = torch.linalg.svd(dense, full_matrices=False)
    cut = truncate(layer, 2)
    torch.testing.assert_close(cut.layer.delta(), (left[:, :2] * values[:2]) @ right[:2], rtol=1e-4, atol=1e-5)
    assert cut.error == pytest.approx(float((cut.layer.delta() - dense).norm() / dense.norm()), rel=1e-4)
    assert truncate(layer, 99).layer.rank == 5


def test_registry_names_the_methods() -> None:
    assert set(merge_methods) == {"average", "co-merge", "task-arithmetic"}
    assert merge_methods["co-merge"].needs == {"calibration"}
    with pytest.raises(ConfigError, match="use one of: average, co-merge, task-arithmetic"):
        merge_methods["slerp"]
