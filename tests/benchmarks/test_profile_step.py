"""The profile's kinds of operations, and that shares are of the whole."""

from __future__ import annotations

import pytest
import torch

from benchmarks.profile_step import kind_of, shares


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("aten::_scaled_dot_product_flash_attention_for_cpu", "attention"),
        ("aten::mkldnn_convolution", "convolution"),
        ("aten::addmm", "matrix product"),
        ("aten::native_group_norm", "normalisation"),
        ("aten::silu", "activation"),
        ("aten::cat", "copy and shape"),
        ("aten::add_", "addition and other sums"),
        ("aten::empty", "other"),
    ],
)
def test_an_operation_is_of_one_kind(name: str, kind: str) -> None:
    assert kind_of(name) == kind


def test_the_largest_share_is_that_of_the_work() -> None:
    left = torch.randn(600, 600)
    found, seconds = shares(lambda: torch.mm(left, left), "cpu")
    assert next(iter(found)) == "matrix product"
    assert sum(found.values()) == pytest.approx(1)
    assert seconds > 0


def test_an_optimizers_sums_are_the_optimizers() -> None:
    weight = torch.nn.Parameter(torch.randn(2000, 2000))
    weight.grad = torch.randn(2000, 2000)
    found, _ = shares(torch.optim.AdamW([weight]).step, "cpu")
    assert found["optimizer"] > 0.95
    other, _ = shares(lambda: weight.detach() + weight.grad, "cpu")
    assert "optimizer" not in other
