"""Granularity "weight" at size: capped by a randomised SVD, in rows, and left out of a search where it is too large."""

from __future__ import annotations

import pytest
import torch
from merge_oracle import random_weights

from safety.lora.weights import LoraLayer, LoraWeights
from safety.merge import weight_form
from safety.merge.methods.co_merge import CoMergeConfig
from safety.merge.search import SearchConfig, SearchSpace
from safety.merge.selection import select_hard, select_soft
from safety.merge.weight_form import dense_bytes, describe_left_out, factorised, merge_by_weights, weight_select

SHAPES = {"mid_block.to_q": (90, 80), "up_blocks.0.to_k": (70, 120)}


def decaying(outputs: int, inputs: int, seed: int) -> torch.Tensor:
    """Return a matrix of full rank whose singular values fall as those of adapters do."""
    draw = torch.Generator().manual_seed(seed)
    left, _ = torch.linalg.qr(torch.randn(outputs, min(outputs, inputs), generator=draw))
    right, _ = torch.linalg.qr(torch.randn(inputs, min(outputs, inputs), generator=draw))
    return (left * (0.9 ** torch.arange(min(outputs, inputs)))) @ right.T


@pytest.mark.parametrize("shape", [(90, 80), (80, 90)])
def test_the_cut_is_nearly_the_best_of_its_rank_and_its_error_is_the_true_one(shape: tuple[int, int]) -> None:
    dense = decaying(*shape, seed=1)
    found = factorised(dense, 20, "a layer")
    assert found.layer.rank == 20
    lost = float((found.layer.delta() - dense).double().norm())
    best = float(torch.linalg.svdvals(dense.double())[20:].norm())
    assert best * 0.999 <= lost <= best * 1.02
    assert found.error == pytest.approx(lost / float(dense.double().norm()), rel=1e-3)
    again = factorised(dense, 20, "a layer")
    assert torch.equal(again.layer.up, found.layer.up)


def test_a_layer_that_fits_is_exact() -> None:
    dense = decaying(90, 20, seed=2)
    for rank in (20, 64, None):
        found = factorised(dense, rank, "x")
        assert found.error == 0.0
        assert torch.equal(found.layer.delta(), dense)


@pytest.mark.parametrize("score", ["vote", "sum"])
@pytest.mark.parametrize("soft", [False, True])
def test_rows_at_a_time_are_the_whole_at_once(monkeypatch: pytest.MonkeyPatch, score: str, soft: bool) -> None:
    layers = [random_weights(seed, SHAPES)["mid_block.to_q"] for seed in range(3)]
    mean, active = torch.rand(80), torch.randint(0, 5, (80,)).float()

    def choose(scores: torch.Tensor) -> object:
        return select_soft(scores, 0.1, 0.3) if soft else select_hard(scores)

    select = weight_select(choose, score, mean, active)  # type: ignore[arg-type]
    whole = merge_by_weights("x", layers, [1.0, 0.5, 2.0], select, None)
    monkeypatch.setattr(weight_form, "CHUNK_CELLS", 3 * 80 * 7)
    parts = merge_by_weights("x", layers, [1.0, 0.5, 2.0], select, None)
    torch.testing.assert_close(parts.layer.layer.delta(), whole.layer.layer.delta())
    torch.testing.assert_close(parts.shares, whole.shares)
    assert parts.ties == whole.ties
    assert float(parts.shares.sum()) == pytest.approx(1.0)


def test_the_estimate_is_the_bytes_of_the_dense_matrices() -> None:
    """At SD 1.5's attention, 128 layers, they take 357 MiB; with the identities of the exact form it was 687 MiB."""
    weights = random_weights(0, SHAPES)
    assert dense_bytes(weights) == sum(layer.delta().numel() * 4 for layer in weights.values())
    sizes = [320] * 5 + [640] * 5 + [1280] * 6
    attention = {}
    for number, width in enumerate(sizes):
        for part in ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "attn2.to_q", "attn2.to_out.0"):
            attention[f"{number}.{part}"] = LoraLayer(torch.zeros(1, width), torch.zeros(width, 1))
        for part in ("attn2.to_k", "attn2.to_v"):
            attention[f"{number}.{part}"] = LoraLayer(torch.zeros(1, 768), torch.zeros(width, 1))
    size = dense_bytes(LoraWeights(attention))
    identities = sum(4 * min(layer.up.shape[0], layer.down.shape[1]) ** 2 for layer in attention.values())
    assert size / 2**20 == pytest.approx(357, abs=1)
    assert (size + identities) / 2**20 == pytest.approx(687, abs=1)


def test_a_search_leaves_the_form_out_above_its_limit_unless_it_starts_there() -> None:
    config = SearchConfig(max_weight_bytes=1000)
    for size, start, held in ((1000, "row", True), (1001, "row", False), (1001, "weight", True)):
        base = CoMergeConfig.model_validate({"granularity": start})
        space = SearchSpace(["a", "b"], base, config, weight_bytes=size)
        assert ("weight" in space.distributions["granularity"].choices) is held  # type: ignore[attr-defined]
        assert any(point["granularity"] == "weight" for point in space.first_points) is held
        assert space.holds(space.start)
        assert space.holds(space.start | {"granularity": "weight"}) is held


def test_what_is_left_out_is_said_with_its_size() -> None:
    experts = {"a": random_weights(0, SHAPES)}
    size = dense_bytes(experts["a"])
    assert describe_left_out(experts, size) is None
    said = describe_left_out(experts, 1)
    assert said is not None
    assert "granularity 'weight'" in said
    assert "merge.search.max_weight_bytes" in said
