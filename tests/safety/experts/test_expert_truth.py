"""An expert against independent truths: a second copy of the base model, the noising's closed form, AdamW by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from safety.dataset.preferences import PreferenceSet
from safety.errors import EmptyDatasetError
from safety.experts import ExpertConfig
from safety.experts.batch import BatchMaker
from safety.experts.engine import TorchEngine
from safety.experts.expert import Expert
from safety.experts.training import ExpertTraining
from safety.families import ModelFamily

MakeModel = Callable[[], ModelFamily]
MakeConfig = Callable[..., ExpertConfig]


@pytest.mark.parametrize("distinct", [None, 2])
def test_the_anchored_loss_is_that_of_two_separate_models(
    make_model: MakeModel, data: PreferenceSet, make_config: MakeConfig, distinct: int | None
) -> None:
    base, model = make_model(), make_model()
    objective = {"name": "anchored-dpo", "beta": 40.0, "anchor_weight": 2.0, "benign_weight": 5.0}
    config = make_config(objective=objective, distinct_batches=distinct, precision="fp32")
    expert = Expert(model, data, config, seed=0)
    maker = BatchMaker(base, data.rows("train"), config, 0)
    draw = torch.Generator().manual_seed(4)
    for step in range(4):
        with torch.no_grad():
            for parameter in expert.parameters_by_name().values():
                parameter += 0.1 * torch.randn(parameter.shape, generator=draw)
        batch = maker.step(step if distinct is None else step % distinct, 0, 1, benign=True)
        with torch.no_grad():
            policy, reference = (m.predict(batch.noisy, batch.timesteps, batch.conditioning) for m in (model, base))
        total = 0.0
        for row in range(4):
            winner, base_winner = (float((p - batch.target)[row].square().mean()) for p in (policy, reference))
            loser, base_loser = (float((p - batch.target)[4 + row].square().mean()) for p in (policy, reference))
            inner = -20.0 * ((winner - loser) - (base_winner - base_loser))
            total += (math.log1p(math.exp(-inner)) + 2.0 * winner) / 4
        total += 5.0 * sum(float((policy - reference)[row].square().mean()) for row in (8, 9)) / 2
        assert float(expert(step, 0).loss.detach()) == pytest.approx(total, rel=1e-4)


def test_noisy_latents_and_targets_give_back_the_images(
    make_model: MakeModel, data: PreferenceSet, make_config: MakeConfig
) -> None:
    model, train = make_model(), data.rows("train")
    batch = BatchMaker(model, train, make_config(), 0).step(0, 0, 1, benign=True)
    pairs = [row.pair for row in train.schedule(0, 0, 4)]
    # z = a x + s eps and v = a eps - s x, with a^2 + s^2 = 1, give x = a z - s v and eps = s z + a v.
    alphas = model.pipeline.scheduler.alphas_cumprod[batch.timesteps].view(-1, 1, 1, 1)  # type: ignore[attr-defined]
    clean = alphas.sqrt() * batch.noisy - (1 - alphas).sqrt() * batch.target
    noise = (1 - alphas).sqrt() * batch.noisy + alphas.sqrt() * batch.target
    assert torch.allclose(clean[:4], train.winner[pairs], atol=1e-4)
    assert torch.allclose(clean[4:8], train.loser[pairs], atol=1e-4)
    assert torch.allclose(noise[:4], noise[4:8], atol=1e-4)
    assert not torch.allclose(noise[0], noise[1], atol=0.1)


def test_the_first_update_is_that_of_adamw_by_hand(
    make_model: MakeModel, data: PreferenceSet, make_config: MakeConfig
) -> None:
    config = make_config(
        steps=1, warmup=0, clip_norm=0.5, weight_decay=0.1, learning_rate=1e-2, precision="fp32", validation_rows=0
    )
    expert = Expert(make_model(), data, config, seed=0)
    before = {name: p.detach().clone() for name, p in expert.parameters_by_name().items()}
    expert(0, 0).loss.backward()
    grads = {name: p.grad.clone() for name, p in expert.parameters_by_name().items() if p.grad is not None}
    expert.zero_grad()
    norm = math.sqrt(sum(float(g.double().square().sum()) for g in grads.values()))
    result = ExpertTraining(expert, TorchEngine(expert)).run()
    assert result.history[0]["gradient_norm"] == pytest.approx(norm, rel=1e-4)
    for name, parameter in expert.parameters_by_name().items():
        # At the first step both moments, freed of their bias, are the gradient's: the step is g / (|g| + eps).
        clipped = grads[name] * min(1.0, 0.5 / norm)
        wanted = before[name] * (1 - 1e-2 * 0.1) - 1e-2 * clipped / (clipped.abs() + 1e-8)
        assert torch.allclose(parameter, wanted, atol=1e-5)


def test_a_lack_of_benign_rows_is_said_where_the_objective_reads_them(
    make_model: MakeModel, data: PreferenceSet, make_config: MakeConfig
) -> None:
    bare = replace(data, benign_splits=("validation",) * 5)
    with pytest.raises(EmptyDatasetError, match=r"no benign row.*benign_weight"):
        Expert(make_model(), bare, make_config(), 0)
    plain = make_config(objective={"name": "diffusion-dpo", "beta": 50.0})
    assert torch.isfinite(Expert(make_model(), bare, plain, 0)(0, 0).loss)
