"""The loss of an expert against loops over single rows, and what it must not depend on."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from safety.dataset.preferences import PreferenceSet
from safety.errors import EmptyDatasetError
from safety.experts import ExpertConfig
from safety.experts.batch import Batch, BatchMaker
from safety.experts.expert import Expert
from safety.families import ModelFamily
from safety.lora.attach import reference

MakeModel = Callable[[], ModelFamily]
MakeConfig = Callable[..., ExpertConfig]
PLAIN = {"name": "diffusion-dpo", "beta": 50.0}


def shake(expert: Expert) -> None:
    """Move the LoRA away from the zero it starts at."""
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in expert.parameters_by_name().values():
            parameter += 0.3 * torch.randn(parameter.shape, generator=draw)


def single_error(expert: Expert, batch: Batch, index: int) -> Tensor:
    """Return one row's squared error, from a forward pass of its own."""
    conditioning = {key: value[index : index + 1] for key, value in batch.conditioning.items()}
    predicted = expert.model.predict(batch.noisy[index : index + 1], batch.timesteps[index : index + 1], conditioning)
    return (predicted - batch.target[index : index + 1]).square().mean()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_at_the_start_policy_and_reference_are_equal(
    make_model: MakeModel, data: PreferenceSet, make_config: MakeConfig, precision: str
) -> None:
    expert = Expert(make_model(), data, make_config(precision=precision, objective=PLAIN), 0)
    value = expert(0, 0)
    assert float(value.loss.detach()) == pytest.approx(math.log(2.0), abs=1e-7)
    assert float(value.metrics["implicit_accuracy"]) == 0.5
    assert value.metrics["winner_error"] == value.metrics["reference_winner_error"]
    assert value.metrics["loser_error"] == value.metrics["reference_loser_error"]


def test_the_loss_is_that_of_a_loop_over_rows(
    make_model: MakeModel, data: PreferenceSet, make_config: MakeConfig
) -> None:
    expert = Expert(make_model(), data, make_config(precision="fp32", objective=PLAIN), 0)
    shake(expert)
    batch = BatchMaker(expert.model, data.rows("train"), expert.config, 0).step(3, 0, 1, benign=False)
    terms = []
    for row in range(batch.rows):
        gap = single_error(expert, batch, row) - single_error(expert, batch, batch.rows + row)
        with reference(expert.model):
            base = single_error(expert, batch, row) - single_error(expert, batch, batch.rows + row)
        terms.append(math.log1p(math.exp(25.0 * (gap - base).item())))
    assert float(expert(3, 0).loss.detach()) == pytest.approx(sum(terms) / len(terms), rel=1e-4)


def test_drift_is_zero_until_the_lora_moves(
    make_model: MakeModel, data: PreferenceSet, make_config: MakeConfig
) -> None:
    expert = Expert(make_model(), data, make_config(), 0)
    assert float(expert(0, 0).metrics["drift"]) == 0.0
    shake(expert)
    assert float(expert(0, 0).metrics["drift"]) > 1e-4


def test_kept_references_hold_benign_predictions_and_nothing_else(
    make_model: MakeModel, data: PreferenceSet, make_config: MakeConfig
) -> None:
    expert = Expert(make_model(), data, make_config(rows=4, benign_rows=2, distinct_batches=3), seed=0)
    first = expert(0, 0).metrics["drift"]
    assert torch.equal(expert(3, 0).metrics["drift"], first)
    [kept] = expert._references.values()
    assert kept.benign.shape == (2, 4, 4, 4)
    # The predictions of all ten latents are one piece of memory.
    assert kept.benign.untyped_storage().nbytes() == 4 * kept.benign.numel()


def test_only_the_lora_has_a_gradient(make_model: MakeModel, data: PreferenceSet, make_config: MakeConfig) -> None:
    expert = Expert(make_model(), data, make_config(), 0)
    shake(expert)
    expert(0, 0).loss.backward()
    own = set(map(id, expert.parameters_by_name().values()))
    for parameter in expert.parameters():
        assert (parameter.grad is not None) == (id(parameter) in own)
    assert all(bool(p.grad.abs().sum() > 0) for p in expert.parameters_by_name().values())


def test_errors_are_fp32_under_autocast(make_model: MakeModel, data: PreferenceSet, make_config: MakeConfig) -> None:
    expert = Expert(make_model(), data, make_config(precision="bf16"), 0)
    value = expert(0, 0)
    assert value.loss.dtype == torch.float32
    assert all(metric.dtype == torch.float32 for metric in value.metrics.values())
    error = value.metrics["winner_error"]
    assert error != error.bfloat16().float()


def test_winner_and_loser_share_noise_timestep_and_prompt(
    make_model: MakeModel, data: PreferenceSet, make_config: MakeConfig
) -> None:
    model = make_model()
    # Equal images: what is left of a difference could only come from noise, timestep or prompt.
    same = replace(data.rows("train"), loser=data.rows("train").winner)
    batch = BatchMaker(model, same, make_config(), 0).step(0, 0, 1, benign=True)
    for tensor in (batch.noisy, batch.timesteps, batch.target, *batch.conditioning.values()):
        assert torch.equal(tensor[: batch.rows], tensor[batch.rows : 2 * batch.rows])
    assert len(batch.noisy) == 2 * batch.rows + 2


def test_a_row_draws_anew_at_each_visit_and_never_otherwise(
    make_model: MakeModel, data: PreferenceSet, make_config: MakeConfig
) -> None:
    maker = BatchMaker(make_model(), data.rows("train"), make_config(), 0)
    row = maker.data.schedule(0, 0, 1)[0]
    once, again = maker.make([row], []), maker.make([row], [])
    later = maker.make([row._replace(draw=row.draw + 1)], [])
    other = BatchMaker(maker.model, maker.data, maker.config, 1).make([row], [])
    assert torch.equal(once.noisy, again.noisy)
    assert not torch.equal(once.noisy, later.noisy)
    assert not torch.equal(once.noisy, other.noisy)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.5, 0.75)])
def test_timesteps_cover_their_range_evenly(
    make_model: MakeModel, data: PreferenceSet, make_config: MakeConfig, low: float, high: float
) -> None:
    maker = BatchMaker(make_model(), data.rows("train"), make_config(timesteps=(low, high)), 0)
    row = maker.data.schedule(0, 0, 1)[0]
    drawn = [int(maker.make([row._replace(draw=draw)], []).timesteps[0]) for draw in range(100)]
    assert min(drawn) >= 1000 * low
    assert max(drawn) < 1000 * high
    for quarter in range(4):
        start = 1000 * (low + (high - low) * quarter / 4)
        found = sum(start <= timestep < start + 250 * (high - low) for timestep in drawn)
        assert 23 <= found <= 27


def test_caption_dropout_replaces_that_share_of_prompts(
    make_model: MakeModel, data: PreferenceSet, make_config: MakeConfig
) -> None:
    maker = BatchMaker(make_model(), data.rows("train"), make_config(caption_dropout=0.25), 0)
    rows = maker.data.schedule(0, 0, 400)
    states = maker.make(rows, []).conditioning["states"][:400]
    dropped = (states == data.empty["states"]).flatten(1).all(dim=1)
    assert 70 <= int(dropped.sum()) <= 130
    for row, gone, found in zip(rows, dropped, states, strict=True):
        if not gone:
            assert torch.equal(found, maker.data.conditioning([row])["states"][0])


def test_benign_dropout_replaces_that_share_of_benign_prompts_alone(
    make_model: MakeModel, data: PreferenceSet, make_config: MakeConfig
) -> None:
    maker = BatchMaker(make_model(), data.rows("train"), make_config(caption_dropout=0.0, benign_dropout=0.25), 0)
    rows, benign = maker.data.schedule(0, 0, 4), maker.data.benign_schedule(0, 0, 400)
    states = maker.make(rows, benign).conditioning["states"]
    dropped = (states == data.empty["states"]).flatten(1).all(dim=1)
    assert not dropped[:8].any()
    assert 70 <= int(dropped[8:].sum()) <= 130
    for row, gone, found in zip(benign, dropped[8:], states[8:], strict=True):
        if not gone:
            assert torch.equal(found, maker.data.benign_prompts["states"][row.place])


def test_parts_together_are_the_whole_step(make_model: MakeModel, data: PreferenceSet, make_config: MakeConfig) -> None:
    whole = Expert(make_model(), data, make_config(precision="fp32"), 0)
    split = Expert(make_model(), data, make_config(precision="fp32"), 0, workers=2)
    shake(whole)
    shake(split)
    total = float(whole(1, 0).loss.detach())
    parts = [float(split(1, part).loss.detach()) for part in range(2)]
    assert sum(parts) / 2 == pytest.approx(total, rel=1e-5)


def test_steps_come_again_after_the_distinct_ones(
    make_model: MakeModel, data: PreferenceSet, make_config: MakeConfig
) -> None:
    expert = Expert(make_model(), data, make_config(distinct_batches=2), 0)
    fresh = Expert(make_model(), data, make_config(distinct_batches=None), 0)
    first, second, third = (float(expert(step, 0).loss.detach()) for step in range(3))
    assert first == third
    assert first != second
    assert [float(fresh(step, 0).loss.detach()) for step in (0, 1)] == [first, second]
    assert float(fresh(2, 0).loss.detach()) != first


def test_a_reference_that_is_kept_is_the_reference(
    make_model: MakeModel, data: PreferenceSet, make_config: MakeConfig
) -> None:
    kept = Expert(make_model(), data, make_config(distinct_batches=2), 0)
    fresh = Expert(make_model(), data, make_config(distinct_batches=None), 0)
    kept(0, 0)
    shake(kept)
    shake(fresh)
    assert float(kept(2, 0).loss.detach()) == float(fresh(0, 0).loss.detach())


def test_validation_looks_at_validation_rows_only(
    make_model: MakeModel, data: PreferenceSet, make_config: MakeConfig
) -> None:
    noisy = torch.where(torch.tensor([name == "validation" for name in data.splits]).view(-1, 1, 1, 1), 9.0, 0.0)
    changed = replace(data, winner=data.winner + noisy)
    one, other = Expert(make_model(), data, make_config(), 0), Expert(make_model(), changed, make_config(), 0)
    assert float(one(0, 0).loss.detach()) == float(other(0, 0).loss.detach())
    assert one.validate()["validation_winner_error"] < other.validate()["validation_winner_error"]
    assert one.validate()["validation_implicit_accuracy"] == 0.5


def test_without_validation_rows_there_is_no_look(
    make_model: MakeModel, data: PreferenceSet, make_config: MakeConfig
) -> None:
    assert Expert(make_model(), data, make_config(validation_rows=0), 0).validate() == {}
    assert Expert(make_model(), data.rows("train"), make_config(), 0).validate() == {}


def test_no_training_pair_is_an_empty_dataset(
    make_model: MakeModel, data: PreferenceSet, make_config: MakeConfig
) -> None:
    with pytest.raises(EmptyDatasetError, match="'hate' has no pair in the split 'train'"):
        Expert(make_model(), data.rows("validation"), make_config(), 0)
