"""Samplers against the stock pipeline with the same scheduler; training's noise is the same before, within and after."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import diffusers
import pytest
import torch
from diffusers import StableDiffusionPipeline
from pydantic import ValidationError

from jobs.run.config import RunConfig
from jobs.run.needs import load_problems, run_loads
from safety.errors import ConfigError
from safety.families import ModelConfig, ModelFamily, load_model
from safety.rendering import RenderConfig, render
from safety.samplers import SAMPLERS, SamplerName
from safety.taxonomy import find_taxonomy

PROMPTS, SEEDS = ["a knife", "a house"], [5, 6]
STOCK: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {"clip_sample": False}),
    "dpm++": ("DPMSolverMultistepScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "unipc": ("UniPCMultistepScheduler", {}),
}


@pytest.fixture(scope="module")
def model(tiny_model_dir: Path) -> ModelFamily:
    return load_model(ModelConfig(path=str(tiny_model_dir)))


def test_all_are_held_against_the_stock_pipeline() -> None:
    assert set(STOCK) == set(SAMPLERS) == set(get_args(SamplerName))


@pytest.mark.parametrize("name", STOCK)
def test_images_are_the_stock_pipelines_with_that_scheduler(
    name: str, model: ModelFamily, tiny_model_dir: Path
) -> None:
    stock = StableDiffusionPipeline.from_pretrained(tiny_model_dir, safety_checker=None)
    kind, settings = STOCK[name]
    stock.scheduler = getattr(diffusers, kind).from_config(stock.scheduler.config, **settings)
    stock.set_progress_bar_config(disable=True)
    config = RenderConfig.model_validate({"steps": 5, "guidance": 3.0, "sampler": name})
    found = render(model, PROMPTS, SEEDS, config)
    for prompt, seed, image in zip(PROMPTS, SEEDS, found, strict=True):
        generator = torch.Generator().manual_seed(seed)
        expected = stock(
            prompt, num_inference_steps=5, guidance_scale=3.0, output_type="pt", generator=generator
        ).images
        assert (image.float() / 255 - expected[0]).abs().max() <= 1 / 255


def test_samplers_differ_and_none_is_ddim(model: ModelFamily) -> None:
    images = {
        name: render(model, PROMPTS, SEEDS, RenderConfig.model_validate({"steps": 3, "sampler": name}))
        for name in STOCK
    }
    assert torch.equal(images["ddim"], render(model, PROMPTS, SEEDS, RenderConfig(steps=3)))
    assert not torch.equal(images["ddim"], images["euler"])


def test_trainings_noise_and_target_stay(model: ModelFamily) -> None:
    latents, noise, timesteps = torch.randn(2, 4, 4, 4), torch.randn(2, 4, 4, 4), torch.tensor([10, 900])
    before = (model.add_noise(latents, noise, timesteps), model.target(latents, noise, timesteps))
    with pytest.raises(RuntimeError, match="inside"), model.sampling("dpm++"):
        for one, other in zip(
            before, (model.add_noise(latents, noise, timesteps), model.target(latents, noise, timesteps)), strict=True
        ):
            assert torch.equal(one, other)
        raise RuntimeError("inside")
    assert type(model.pipeline.scheduler).__name__ == "DDIMScheduler"  # type: ignore[attr-defined]


def test_a_flow_matching_model_has_its_own_alone(pico_model_dir: Callable[[str], Path]) -> None:
    flow = load_model(ModelConfig(path=str(pico_model_dir("sd3"))))
    with pytest.raises(ConfigError, match="this one matches flows") as caught:
        render(flow, PROMPTS, SEEDS, RenderConfig(steps=1, sampler="dpm++"))
    assert caught.value.field == "render.sampler"
    with flow.sampling(None):
        pass


def test_a_sampler_that_the_model_has_not_is_found_before_anything_runs(
    pico_model_dir: Callable[[str], Path], tmp_path: Path
) -> None:
    document = {
        "run": {"name": "flow", "output": str(tmp_path)},
        "model": {"path": str(pico_model_dir("sd3"))},
        "generate": {"render": {"sampler": "unipc"}},
    }
    run = RunConfig.model_validate(document)
    loads = [each for each in run_loads(run, ["generate"]) if each.model is not None]
    [problem] = load_problems(loads, find_taxonomy(run.taxonomy), models=True)
    assert problem.field == "generate.render.sampler"


def test_a_name_that_there_is_not_is_refused() -> None:
    with pytest.raises(ValidationError, match="sampler"):
        RenderConfig.model_validate({"sampler": "ancestral"})
