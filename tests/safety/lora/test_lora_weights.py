"""LoRA weights as values: what is kept when they are rescaled."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from safety.lora.weights import LoraLayer, LoraWeights


@given(
    rank=st.integers(1, 4),
    seed=st.integers(0, 2**16),
    lengths=st.lists(st.floats(-3, 3), min_size=4, max_size=4),
    empty=st.booleans(),
)
def test_a_balanced_layer_is_the_same_update_with_factors_of_one_length(
    rank: int, seed: int, lengths: list[float], empty: bool
) -> None:
    draw = torch.Generator().manual_seed(seed)
    sizes = torch.tensor([10.0**length for length in lengths[:rank]])
    layer = LoraLayer(sizes[:, None] * torch.randn(rank, 6, generator=draw), torch.randn(5, rank, generator=draw))
    if empty:
        layer.up[:, 0] = 0.0
    found = layer.balanced()
    torch.testing.assert_close(found.delta(), layer.delta(), rtol=1e-4, atol=1e-5 * float(layer.delta().abs().max()))
    torch.testing.assert_close(found.down.norm(dim=1), found.up.norm(dim=0), rtol=1e-4, atol=1e-12)
    if empty:
        assert not found.down[0].any()


def test_the_rank_of_an_adapter_is_that_of_its_largest_layer() -> None:
    layers = {name: LoraLayer(torch.ones(rank, 2), torch.ones(3, rank)) for name, rank in (("a", 1), ("b", 4))}
    assert LoraWeights(layers).rank == 4
    assert LoraWeights({}).rank == 0


def test_the_squared_norm_is_that_of_the_product() -> None:
    draw = torch.Generator().manual_seed(0)
    layer = LoraLayer(torch.randn(2, 6, generator=draw), torch.randn(5, 2, generator=draw))
    torch.testing.assert_close(layer.squared_norm(), float(layer.delta().square().sum()), rtol=1e-5, atol=0.0)
