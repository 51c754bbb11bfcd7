"""Co-Merge against loops over every input, row and weight, written from the definition."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from merge_oracle import brute_merge, brute_scores, random_texts, random_weights
from torch import Tensor

from safety.errors import ArtifactFormatError, ConfigError
from safety.gates import GateConfig
from safety.lora.weights import LoraLayer, LoraWeights
from safety.merge import Calibration
from safety.merge.calibration import LayerStatistics
from safety.merge.methods.co_merge import CoMerge, CoMergeConfig, block_group, block_groups

LAYER = "mid_block.attentions.0.to_q"
UP_LAYER = "up_blocks.1.attentions.0.to_v"
SHAPES = {LAYER: (5, 4), UP_LAYER: (3, 6)}
co_merge = CoMerge()


def inputs_of(seed: int, width: int, count: int = 11) -> Tensor:
    values = torch.randn(count, width, generator=torch.Generator().manual_seed(seed))
    # Some exact zeros: an input that is zero signals nothing at weight granularity.
    return values * (values.abs() > 0.3)


def statistics_of(deltas: list[Tensor], inputs: Tensor) -> LayerStatistics:
    votes = torch.tensor(brute_scores(deltas, inputs, "row", "vote")).squeeze(-1)
    sums = torch.tensor(brute_scores(deltas, inputs, "row", "sum")).squeeze(-1)
    return LayerStatistics(votes, sums, inputs.abs().mean(0), (inputs != 0).float().sum(0), 0, len(inputs))


def calibration_of(experts: Mapping[str, LoraWeights], seed: int) -> tuple[Calibration, dict[str, Tensor]]:
    inputs = {name: inputs_of(seed + index, shape[1]) for index, (name, shape) in enumerate(SHAPES.items())}
    layers = {
        name: statistics_of([expert[name].delta() for expert in experts.values()], inputs[name]) for name in SHAPES
    }
    texts = random_texts(len(experts), SHAPES[UP_LAYER][1], seed)
    return Calibration(tuple(experts), layers, texts, (UP_LAYER,)), inputs


def experts_of(count: int, seed: int = 0) -> dict[str, LoraWeights]:
    return {f"expert-{index}": random_weights(100 * seed + index, SHAPES, rank=2) for index in range(count)}


@pytest.mark.parametrize("granularity", ["row", "weight"])
@pytest.mark.parametrize("score", ["vote", "sum"])
@pytest.mark.parametrize(
    "selection",
    [{"selection": "hard"}, {"selection": "soft", "tau": 0.3, "temperature": 0.2}, {"selection": "soft"}],
    ids=["hard", "soft-tau", "soft"],
)
def test_merge_is_the_definition(granularity: str, score: str, selection: dict[str, object]) -> None:
    experts = experts_of(3)
    statistics, inputs = calibration_of(experts, 50)
    config = CoMergeConfig.model_validate(
        {
            "granularity": granularity,
            "score": score,
            "lambdas": {"expert-1": 1.7, "expert-2": 0.4},
            "block_factors": {"mid": 0.5, "up": 2.0},
            **selection,
        }
    )
    merged = co_merge(experts, statistics, config).weights
    for name, factor in ((LAYER, 0.5), (UP_LAYER, 2.0)):
        deltas = [expert[name].delta() for expert in experts.values()]
        expected = brute_merge(deltas, inputs[name], config, [factor, 1.7 * factor, 0.4 * factor])
        torch.testing.assert_close(merged[name].delta(), expected, rtol=1e-4, atol=1e-5)


def test_row_merge_is_the_dense_row_selection_as_one_lora_of_summed_rank() -> None:
    experts = experts_of(3)
    statistics, _ = calibration_of(experts, 9)
    layer = co_merge(experts, statistics, CoMergeConfig()).weights[LAYER]
    assert layer.rank == 3 * 2
    winners = statistics.layers[LAYER].votes.argmax(0)
    for j, winner in enumerate(winners.tolist()):
        block = layer.up[j].reshape(3, 2)
        assert (block.abs().sum(1) > 0).tolist() == [index == winner for index in range(3)]
        torch.testing.assert_close(layer.delta()[j], list(experts.values())[winner][LAYER].delta()[j])


@settings(max_examples=25, deadline=None)
@given(
    order=st.permutations(range(3)),
    granularity=st.sampled_from(["row", "weight"]),
    score=st.sampled_from(["vote", "sum"]),
    selection=st.sampled_from(["hard", "soft"]),
    seed=st.integers(0, 50),
)
def test_order_of_experts_does_not_matter_without_ties(
    order: list[int], granularity: str, score: str, selection: str, seed: int
) -> None:
    config = CoMergeConfig.model_validate({"granularity": granularity, "score": score, "selection": selection})
    experts = experts_of(3, seed)
    statistics, _ = calibration_of(experts, seed)
    plain = co_merge(experts, statistics, config)
    names = [list(experts)[index] for index in order]
    shuffled = {name: experts[name] for name in names}
    moved = Calibration(
        tuple(names),
        {
            name: LayerStatistics(
                layer.votes[order], layer.signal[order], layer.mean_input, layer.active_inputs, layer.ties, layer.count
            )
            for name, layer in statistics.layers.items()
        },
        statistics.moments,
        statistics.text_layers,
    )
    other = co_merge(shuffled, moved, config)
    assert plain.report["ties"]["overall"] == other.report["ties"]["overall"]
    for name in SHAPES:
        if plain.report["ties"]["layers"][name] == 0:
            torch.testing.assert_close(plain.weights[name].delta(), other.weights[name].delta(), rtol=1e-4, atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(
    copies=st.integers(1, 4),
    granularity=st.sampled_from(["row", "weight"]),
    score=st.sampled_from(["vote", "sum"]),
    selection=st.sampled_from(["hard", "soft"]),
)
def test_identical_experts_give_that_expert_back(copies: int, granularity: str, score: str, selection: str) -> None:
    expert = random_weights(3, SHAPES, rank=2)
    experts = {f"copy-{index}": expert for index in range(copies)}
    statistics, _ = calibration_of(experts, 4)
    config = CoMergeConfig.model_validate({"granularity": granularity, "score": score, "selection": selection})
    merged = co_merge(experts, statistics, config).weights
    for name in SHAPES:
        torch.testing.assert_close(merged[name].delta(), expert[name].delta(), rtol=1e-4, atol=1e-6)


def test_ties_go_to_the_lower_index_and_are_counted() -> None:
    expert = random_weights(3, SHAPES, rank=2)
    experts = {"first": expert, "second": expert, "weak": expert.scaled(0.5)}
    statistics, _ = calibration_of(experts, 4)
    by_sum = co_merge(experts, statistics, CoMergeConfig(score="sum")).report
    assert by_sum["ties"]["overall"] == by_sum["ties"]["cells"] == 8
    assert by_sum["shares"]["overall"] == {"first": 1.0, "second": 0.0, "weak": 0.0}
    # A vote on equal signals goes to the lower index already, so its count is no tie.
    assert co_merge(experts, statistics, CoMergeConfig(score="vote")).report["ties"]["overall"] == 0


def test_soft_selection_becomes_hard_as_the_temperature_falls() -> None:
    experts = experts_of(3)
    statistics, _ = calibration_of(experts, 1)
    hard = co_merge(experts, statistics, CoMergeConfig(score="sum")).weights
    soft = co_merge(experts, statistics, CoMergeConfig(score="sum", selection="soft", temperature=1e-5)).weights
    for name in SHAPES:
        torch.testing.assert_close(soft[name].delta(), hard[name].delta())


def test_a_merge_over_the_highest_rank_is_cut_to_it_and_the_error_is_reported() -> None:
    experts = experts_of(3)
    statistics, _ = calibration_of(experts, 1)
    exact = co_merge(experts, statistics, CoMergeConfig(max_rank=None))
    assert exact.report["svd_error"]["overall"] == 0.0
    assert co_merge(experts, statistics, CoMergeConfig(max_rank=6)).weights[LAYER].rank == 6
    cut = co_merge(experts, statistics, CoMergeConfig(max_rank=1))
    lost = whole = 0.0
    for name in SHAPES:
        delta, wanted = cut.weights[name].delta(), exact.weights[name].delta()
        assert cut.weights[name].rank == 1
        # Eckart and Young: no matrix of rank 1 is nearer.
        best = torch.linalg.svdvals(wanted.double())
        assert float((delta - wanted).norm()) == pytest.approx(float(best[1:].norm()), rel=1e-4)
        lost += float((delta - wanted).square().sum())
        whole += float(wanted.square().sum())
    assert cut.report["svd_error"]["overall"] == pytest.approx(math.sqrt(lost / whole), rel=1e-4)


def test_the_error_of_all_layers_counts_those_that_were_not_cut() -> None:
    """Experts of two ranks: one layer is over the highest rank, the other is not."""
    experts = {
        name: LoraWeights({**random_weights(seed, SHAPES, 1), LAYER: random_weights(seed, SHAPES, 4)[LAYER]})
        for seed, name in enumerate(("a", "b"))
    }
    statistics, _ = calibration_of(experts, 1)
    exact = co_merge(experts, statistics, CoMergeConfig(max_rank=None)).weights
    cut = co_merge(experts, statistics, CoMergeConfig(max_rank=2))
    assert {name: layer.rank for name, layer in cut.weights.items()} == {LAYER: 2, UP_LAYER: 2}
    lost = float((cut.weights[LAYER].delta() - exact[LAYER].delta()).square().sum())
    whole = sum(float(layer.delta().square().sum()) for layer in exact.values())
    assert cut.report["svd_error"]["overall"] == pytest.approx(math.sqrt(lost / whole), rel=1e-4)
    assert cut.report["svd_error"]["layers"][UP_LAYER] == 0.0


@pytest.mark.parametrize("granularity", ["row", "input"])
def test_candidates_of_one_search_are_those_that_are_merged_alone(granularity: str) -> None:
    """What a search keeps between candidates changes none of them, also where their experts are other ones."""
    kept = CoMerge(keep=True)
    for seed in (0, 1):
        experts = experts_of(3, seed)
        statistics, _ = calibration_of(experts, seed)
        for benign in (0.3, 1.0, 4.0):
            gate = GateConfig(benign=benign, ridge=0.01, directions=None)
            config = CoMergeConfig.model_validate({"granularity": granularity, "gate": gate})
            alone, found = co_merge(experts, statistics, config), kept(experts, statistics, config)
            for name in SHAPES:
                assert torch.equal(found.weights[name].delta(), alone.weights[name].delta())
            assert found.report == alone.report


@pytest.mark.parametrize("granularity", ["row", "weight"])
def test_shares_are_those_of_the_selection(granularity: str) -> None:
    experts = experts_of(3)
    statistics, inputs = calibration_of(experts, 2)
    config = CoMergeConfig.model_validate({"granularity": granularity})
    report = co_merge(experts, statistics, config).report
    deltas = [expert[LAYER].delta() for expert in experts.values()]
    found = brute_scores(deltas, inputs[LAYER], granularity, "vote")
    cells = [[found[i][j][k] for i in range(3)] for j in range(5) for k in range(1 if granularity == "row" else 4)]
    winners = [cell.index(max(cell)) for cell in cells]
    expected = {f"expert-{index}": winners.count(index) / len(cells) for index in range(3)}
    assert report["shares"]["layers"][LAYER] == pytest.approx(expected)
    assert sum(report["shares"]["overall"].values()) == pytest.approx(1.0)


def test_wrong_statistics_experts_and_lambdas_are_named() -> None:
    experts = experts_of(2)
    statistics, _ = calibration_of(experts, 1)
    with pytest.raises(ConfigError, match="none are given"):
        co_merge(experts, None, CoMergeConfig())
    with pytest.raises(ConfigError, match="exactly these experts"):
        co_merge(dict(reversed(experts.items())), statistics, CoMergeConfig())
    with pytest.raises(ConfigError, match=r"lambdas\.expert-9: there is no expert"):
        co_merge(experts, statistics, CoMergeConfig(lambdas={"expert-9": 1.0}))
    with pytest.raises(ConfigError, match="lacks the layer mid_block"):
        co_merge(experts, replace(statistics, layers={UP_LAYER: statistics.layers[UP_LAYER]}), CoMergeConfig())
    with pytest.raises(ConfigError, match="no expert to merge"):
        co_merge({}, statistics, CoMergeConfig())
    lesser = {**experts, "expert-1": LoraWeights({LAYER: experts["expert-1"][LAYER]})}
    with pytest.raises(ArtifactFormatError, match=r"adapt different layers, such as up_blocks\.1"):
        co_merge(lesser, statistics, CoMergeConfig())
    other = {**experts, "expert-1": random_weights(1, {LAYER: (5, 4), UP_LAYER: (3, 7)})}
    with pytest.raises(ArtifactFormatError, match=r"\(3, 6\) in 'expert-0' and \(3, 7\)"):
        co_merge(other, statistics, CoMergeConfig())


def test_experts_may_differ_in_rank() -> None:
    experts = {"low": random_weights(0, SHAPES, rank=1), "high": random_weights(1, SHAPES, rank=4)}
    statistics, inputs = calibration_of(experts, 3)
    layer = co_merge(experts, statistics, CoMergeConfig()).weights[LAYER]
    expected = brute_merge([e[LAYER].delta() for e in experts.values()], inputs[LAYER], CoMergeConfig(), [1, 1])
    assert layer.rank == 5
    torch.testing.assert_close(layer.delta(), expected, rtol=1e-4, atol=1e-5)


def test_by_inputs_the_layers_that_read_prompts_are_gated_and_the_others_are_merged_by_rows() -> None:
    experts = experts_of(3)
    statistics, _ = calibration_of(experts, 6)
    lambdas = {"expert-1": 1.7, "expert-2": 0.4}
    config = CoMergeConfig(
        granularity="input",
        gate=GateConfig(benign=0.7, ridge=0.01, directions=None),
        lambdas=lambdas,
        block_factors={"up": 2.0},
    )
    result = co_merge(experts, statistics, config)
    own, kept = statistics.moments
    total = own.sum(0) + 0.7 * 3 * kept
    total += 0.01 * float(total.diagonal().mean()) * torch.eye(6)
    expected = torch.zeros(3, 6, dtype=torch.float64)
    for index, (name, expert) in enumerate(experts.items()):
        delta = expert[UP_LAYER].delta().double()
        expected += 2.0 * lambdas.get(name, 1.0) * delta @ own[index] @ torch.linalg.inv(total)
    torch.testing.assert_close(result.weights[UP_LAYER].delta().double(), expected, rtol=1e-4, atol=1e-5)
    assert result.weights[UP_LAYER].rank == 3 * 2
    rows = co_merge(experts, statistics, config.model_copy(update={"granularity": "row"})).weights
    assert torch.equal(result.weights[LAYER].delta(), rows[LAYER].delta())
    # What the experts leave of the input space is the benign prompts' and the ridge's.
    assert 0 < sum(result.report["shares"]["layers"][UP_LAYER].values()) < 1


def test_a_zero_expert_set_gives_a_zero_merge() -> None:
    zero = LoraWeights({name: LoraLayer(torch.zeros(2, i), torch.zeros(o, 2)) for name, (o, i) in SHAPES.items()})
    experts = {"a": zero, "b": zero}
    statistics, _ = calibration_of(experts, 3)
    for config in (CoMergeConfig(), CoMergeConfig(selection="soft"), CoMergeConfig(granularity="weight")):
        merged = co_merge(experts, statistics, config)
        assert all(float(layer.delta().abs().max()) == 0 for layer in merged.weights.values())
        assert merged.report["ties"]["overall"] == merged.report["ties"]["cells"]


def test_block_groups_are_read_from_module_names() -> None:
    assert block_group("down_blocks.0.attentions.0.to_q") == "down"
    assert block_group("mid_block.attentions.0.to_q") == "mid"
    assert block_group("up_blocks.3.attentions.0.to_q") == "up"
    assert block_group("transformer_blocks.0.attn.to_q") == "dual"
    assert block_group("single_transformer_blocks.7.attn.to_q") == "single"
    assert block_group("context_embedder") is None


def test_groups_are_searched_where_there_are_several() -> None:
    unet = ["mid_block.attentions.0.to_q"]
    dual, single = "transformer_blocks.0.attn.to_q", "single_transformer_blocks.7.attn.to_q"
    assert block_groups(unet) == ("down", "mid", "up")
    assert block_groups([dual, single, "context_embedder"]) == ("dual", "single")
    assert block_groups([dual, "context_embedder"]) == block_groups(["context_embedder"]) == ()
