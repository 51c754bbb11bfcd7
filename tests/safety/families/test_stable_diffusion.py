"""The Stable Diffusion family against the stock pipeline."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline

from safety.errors import ConfigError, PromptError
from safety.families import ModelConfig, ModelFamily, load_model


@pytest.fixture(scope="module")
def model(tiny_model_dir: Path) -> ModelFamily:
    return load_model(ModelConfig(path=str(tiny_model_dir)))


def test_sample_is_the_stock_pipelines_image(model: ModelFamily, tiny_model_dir: Path) -> None:
    stock = StableDiffusionPipeline.from_pretrained(tiny_model_dir, safety_checker=None)
    noise = torch.randn((1, 4, 4, 4), generator=torch.Generator().manual_seed(5))
    expected = stock(
        "a knife",
        num_inference_steps=4,
        guidance_scale=3.0,
        output_type="pt",
        generator=torch.Generator().manual_seed(5),
    ).images
    got = model.sample(model.encode_text(["a knife"]), noise, steps=4, guidance=3.0)
    assert torch.allclose((got + 1) / 2, expected, atol=1e-5)


def test_target_is_the_velocity_in_closed_form(model: ModelFamily) -> None:
    latents, noise = torch.randn(2, 4, 4, 4), torch.randn(2, 4, 4, 4)
    timesteps = torch.tensor([10, 900])
    noised = model.add_noise(latents, noise, timesteps)
    target = model.target(latents, noise, timesteps)
    # v = a eps - s x and z = a x + s eps, with a^2 + s^2 = 1, give x = a z - s v.
    alphas = model.pipeline.scheduler.alphas_cumprod[timesteps].sqrt()[:, None, None, None]  # type: ignore[attr-defined]
    assert torch.allclose(alphas * noised - (1 - alphas**2).sqrt() * target, latents, atol=1e-4)


def test_latents_survive_a_round_through_the_scaling_factor(model: ModelFamily) -> None:
    images = torch.rand(1, 3, 16, 16) * 2 - 1
    raw = model.pipeline.vae.encode(images).latent_dist.mode()  # type: ignore[attr-defined]
    assert torch.allclose(model.encode_images(images), raw * 0.5)


def test_too_long_a_prompt_names_the_limit(model: ModelFamily) -> None:
    with pytest.raises(PromptError, match=r"prompt: the prompt has \d+ tokens and the model reads 32"):
        model.encode_text(["house " * 60])


def test_prompts_are_checked_while_others_are_encoded(model: ModelFamily, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = model.pipeline.tokenizer  # type: ignore[attr-defined]
    real = type(tokenizer).set_truncation_and_padding

    def then_wait(self: Any, **settings: Any) -> None:
        real(self, **settings)
        time.sleep(1e-4)  # in which another thread may set its own

    monkeypatch.setattr(type(tokenizer), "set_truncation_and_padding", then_wait)
    expected = model.encode_text(["a knife"])["states"]
    stop = threading.Event()
    failures: list[Exception] = []

    def keep_checking() -> None:
        try:
            while not stop.is_set():
                model.check_prompt("a house")
        except Exception as error:
            failures.append(error)

    checker = threading.Thread(target=keep_checking)
    checker.start()
    try:
        found = [model.encode_text(["a knife"])["states"] for _ in range(50)]
    finally:
        stop.set()
        checker.join(60)
    assert failures == []
    assert all(torch.equal(states, expected) for states in found)


@pytest.mark.parametrize(("height", "width"), [(15, 16), (16, 0), (16, -4)])
def test_size_must_be_a_multiple(model: ModelFamily, height: int, width: int) -> None:
    with pytest.raises(ConfigError, match="not a positive multiple of 4"):
        model.latent_shape(height, width)


def test_a_missing_model_names_the_field(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.path"):
        load_model(ModelConfig(path=str(tmp_path / "absent")))


def test_parts_of_a_model_do_what_the_whole_does_and_take_no_other_memory(tiny_model_dir: Path) -> None:
    config = ModelConfig(path=str(tiny_model_dir))
    whole, denoiser, text = load_model(config), load_model(config, "denoiser"), load_model(config, "text")
    assert denoiser.pipeline.vae is denoiser.pipeline.text_encoder is text.pipeline.vae is text.pipeline.unet is None
    assert whole.size_multiple == denoiser.size_multiple == text.size_multiple
    prompts = text.encode_text(["a knife"])
    assert torch.equal(prompts["states"], whole.encode_text(["a knife"])["states"])
    noisy, timesteps = torch.randn(1, *whole.latent_shape(16, 16)), torch.tensor([10])
    assert torch.equal(denoiser.predict(noisy, timesteps, prompts), whole.predict(noisy, timesteps, prompts))
