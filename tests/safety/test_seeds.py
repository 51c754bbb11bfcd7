"""Draws depend on what is drawn, and on nothing else."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from safety.seeds import derive_seed, normal, uniform


@given(st.integers(0, 2**40), st.text(max_size=20), st.integers(0, 1000))
def test_a_draw_is_a_function_in_range(seed: int, row: str, draw: int) -> None:
    assert derive_seed(seed, row, draw) == derive_seed(seed, row, draw)
    assert 0 <= derive_seed(seed, row, draw) < 2**63
    assert 0.0 <= uniform(seed, row, draw) < 1.0


def test_neighbouring_draws_differ() -> None:
    seeds = {derive_seed(s, r, d) for s in range(5) for r in ("a", "b", "a1") for d in range(5)}
    assert len(seeds) == 75


def test_uniform_is_uniform() -> None:
    draws = torch.tensor([uniform(3, "row", i) for i in range(4000)])
    assert abs(draws.mean().item() - 0.5) < 0.02
    assert abs(draws.var().item() - 1 / 12) < 0.01


def test_noise_ignores_the_global_generator() -> None:
    torch.manual_seed(1)
    first = normal((4, 4), 7, "row")
    torch.manual_seed(2)
    assert torch.equal(first, normal((4, 4), 7, "row"))
    assert not torch.equal(first, normal((4, 4), 7, "row", 1))
