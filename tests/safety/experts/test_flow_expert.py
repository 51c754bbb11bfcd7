"""Diffusion-DPO on flow-matching models: the loss in closed form, from the velocity's errors, row by row."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from safety.experts import ExpertConfig
from safety.experts.batch import BatchMaker
from safety.experts.expert import Expert
from safety.families import ModelConfig, load_model
from safety.lora.attach import reference
from tests.support.small_sets import preferences
from tests.support.small_world import knife_prompts

MakeConfig = Callable[..., ExpertConfig]
BETA = 50.0


def shake(expert: Expert) -> None:
    """Move the LoRA away from the zero it starts at."""
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in expert.parameters_by_name().values():
            parameter += 0.3 * torch.randn(parameter.shape, generator=draw)


@pytest.mark.parametrize("name", ["sd3", "flux-dev"])
def test_the_loss_is_that_of_the_velocitys_errors(
    name: str, pico_model_dir: Callable[[str], Path], make_config: MakeConfig
) -> None:
    model = load_model(ModelConfig(path=str(pico_model_dir(name))))
    rows = preferences(model, knife_prompts(["hate"], ["train"], ["train"]), "hate")
    config = make_config(precision="fp32", objective={"name": "diffusion-dpo", "beta": BETA}, timesteps=(0.0, 1.0))
    expert = Expert(model, rows, config, 0)
    shake(expert)
    batch = BatchMaker(model, rows.rows("train"), config, 0).step(3, 0, 1, benign=False)
    pairs = [row.pair for row in rows.rows("train").schedule(0, 3, config.rows)]
    clean = torch.cat([rows.winner[pairs], rows.loser[pairs]])
    # The scheduler's own table, from the noisiest level.
    schedule = type(model.pipeline.scheduler).from_config(model.pipeline.scheduler.config)  # type: ignore[attr-defined]
    sigmas = schedule.sigmas[999 - batch.timesteps].double()

    def error(index: int) -> float:
        """Return |v - (e - x)|^2 with e from x_t = (1 - sigma) x + sigma e, from a forward pass of its own."""
        one = slice(index, index + 1)
        sigma, latents = sigmas[index], clean[one].double()
        noise = (batch.noisy[one].double() - (1 - sigma) * latents) / sigma
        prompts = {key: value[one] for key, value in batch.conditioning.items()}
        with torch.no_grad():
            found: Tensor = model.predict(batch.noisy[one], batch.timesteps[one], prompts).double()
        return float((found - (noise - latents)).square().mean())

    terms, moved = [], []
    for row in range(batch.rows):
        assert sigmas[row] == sigmas[batch.rows + row]
        gap = error(row) - error(batch.rows + row)
        with reference(model):
            base = error(row) - error(batch.rows + row)
        terms.append(math.log1p(math.exp(BETA / 2 * (gap - base))))
        moved.append(abs(gap - base))
    assert max(moved) > 1e-3, "an expert that changes nothing would do as well"
    assert float(expert(3, 0).loss.detach()) == pytest.approx(sum(terms) / len(terms), rel=1e-3)


@pytest.mark.parametrize("name", ["sd35", "flux-dev"])
def test_by_default_the_layer_that_reads_the_prompt_is_adapted_behind_its_gate(
    name: str, pico_model_dir: Callable[[str], Path], make_config: MakeConfig
) -> None:
    model = load_model(ModelConfig(path=str(pico_model_dir(name))))
    rows = preferences(model, knife_prompts(["hate"], ["train"], ["train"]), "hate")
    config = make_config(precision="fp32", lora={"rank": 2})
    assert config.lora.reads_prompt(model)
    # The first half of the states' directions passes.
    gate = torch.diag((torch.arange(32) < 16).float())
    expert = Expert(model, rows, config, 0, gate=gate)
    expert(0, 0).loss.backward()
    assert set(expert.parameters_by_name()) == {"context_embedder.down", "context_embedder.up"}
    shake(expert)
    shape = (1, *model.latent_shape(16, 16))
    noisy, timesteps = torch.randn(shape), torch.tensor([800])
    states = model.encode_text(["a knife"])
    with torch.no_grad():
        whole = model.predict(noisy, timesteps, states)
        with reference(model):
            base = model.predict(noisy, timesteps, states)
        # What the gate holds back changes nothing, whether it is there or not: states of the other half alone.
        other = {**states, "states": states["states"] @ (torch.eye(32) - gate)}
        held = model.predict(noisy, timesteps, other)
        with reference(model):
            held_base = model.predict(noisy, timesteps, other)
    assert not torch.allclose(whole, base, atol=1e-4)
    assert torch.allclose(held, held_base, atol=1e-6)
    [layer] = expert.weights().values()
    assert torch.equal(layer.down[:, 16:], torch.zeros(2, 16))
