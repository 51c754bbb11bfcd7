"""Rendering against the stock pipeline."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from safety.errors import ConfigError, PromptError
from safety.families import ModelConfig, ModelFamily, load_model
from safety.rendering import RenderConfig, initial_noise, render, row_seed

CONFIG = RenderConfig(steps=3, guidance=3.0, batch=2)
PROMPTS = ["a knife", "a house on blue", "a blue house"]
SEEDS = [11, 2**32 - 1, 7]


@pytest.fixture(scope="module")
def model(tiny_model_dir: Path) -> ModelFamily:
    return load_model(ModelConfig(path=str(tiny_model_dir)))


def stock(folder: Path, prompt: str, seed: int, **options: object) -> torch.Tensor:
    pipe = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator("cpu").manual_seed(seed)
    image = pipe(prompt, num_inference_steps=3, guidance_scale=3.0, generator=generator, **options).images[0]
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)


def apart(left: torch.Tensor, right: torch.Tensor) -> int:
    return int((left.int() - right.int()).abs().max())


def test_each_image_is_the_stock_pipelines(model: ModelFamily, tiny_model_dir: Path) -> None:
    images = render(model, PROMPTS, SEEDS, CONFIG)
    assert images.dtype == torch.uint8
    assert images.shape == (3, 3, 16, 16)
    for image, prompt, seed in zip(images, PROMPTS, SEEDS, strict=True):
        # Batched sums differ in the last bits, which can tip a rounding.
        assert apart(image, stock(tiny_model_dir, prompt, seed)) <= 1
    assert apart(images[0], images[1]) > 10


def test_negative_prompt_and_size_are_the_stock_pipelines(model: ModelFamily, tiny_model_dir: Path) -> None:
    config = CONFIG.model_copy(update={"height": 24, "width": 32})
    image = render(model, ["a knife"], [3], config, negative="a house")[0]
    assert apart(image, stock(tiny_model_dir, "a knife", 3, negative_prompt="a house", height=24, width=32)) <= 1
    assert apart(image, stock(tiny_model_dir, "a knife", 3, height=24, width=32)) > 1


def test_noise_is_the_stock_draw_in_the_models_dtype(tiny_model_dir: Path) -> None:
    half = load_model(ModelConfig(path=str(tiny_model_dir), dtype="float16"))
    drawn = torch.randn((1, 4, 4, 4), generator=torch.Generator("cpu").manual_seed(9), dtype=torch.float16)
    assert torch.equal(initial_noise(half, 9), drawn)


def test_same_call_same_bits(model: ModelFamily) -> None:
    assert torch.equal(render(model, PROMPTS, SEEDS, CONFIG), render(model, PROMPTS, SEEDS, CONFIG))


def test_row_seeds_are_distinct_and_fit_32_bits() -> None:
    seeds = {row_seed(s, f"row-{i}") for s in range(3) for i in range(300)}
    assert len(seeds) == 900
    assert all(0 <= seed < 2**32 for seed in seeds)
    assert row_seed(0, "row-0") == row_seed(0, "row-0")


def test_bad_calls_name_what_is_wrong(model: ModelFamily) -> None:
    with pytest.raises(ConfigError, match="height: 15 is not a positive multiple of 4"):
        render(model, ["a"], [0], CONFIG.model_copy(update={"height": 15}))
    with pytest.raises(PromptError, match="tokens"):
        render(model, ["house " * 60], [0], CONFIG)
    with pytest.raises(ValueError, match="2 prompts and 1 seeds"):
        render(model, ["a", "b"], [0], CONFIG)
    with pytest.raises(ValueError, match="0 prompts"):
        render(model, [], [], CONFIG)
