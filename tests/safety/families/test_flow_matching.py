"""Stable Diffusion 3 and FLUX.1 against the stock pipelines and schedulers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from safety.errors import ConfigError, PromptError
from safety.families import ModelConfig, Parts, family_name, load_model
from safety.families.flux import TRAINING_GUIDANCE
from safety.rendering import RenderConfig, initial_noise, render
from tests.support.pico_flow_models import PICO_FLOW_MODELS

LAST = 999
PARTS: tuple[Parts, ...] = ("denoiser", "text")
PROMPTS = ["a knife", "a very shocking picture of a house"]
LONGER_THAN_CLIPS = "house " * 60
"""Longer than the 32 tokens of the small CLIPs, and shorter than what a T5 reads."""


class Loaded(NamedTuple):
    name: str
    ours: Any
    stock: Any
    folder: Path


@pytest.fixture(scope="module", params=PICO_FLOW_MODELS)
def loaded(request: pytest.FixtureRequest, pico_model_dir: Callable[[str], Path]) -> Loaded:
    folder = pico_model_dir(request.param)
    model = load_model(ModelConfig(path=str(folder)))
    return Loaded(request.param, model, PICO_FLOW_MODELS[request.param].stock(folder), folder)


def is_flux(loaded: Loaded) -> bool:
    return loaded.name.startswith("flux")


def draw(loaded: Loaded, prompts: list[str], seeds: list[int], **settings: Any) -> Tensor:
    """Return the stock pipeline's images, [B, 3, H, W] in [0, 1], or what ``output_type`` asks for."""
    images: Tensor = loaded.stock(
        prompts,
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        **{"height": 16, "width": 16, "num_inference_steps": 3, "guidance_scale": 4.0, "output_type": "pt", **settings},
    ).images
    return images


def test_the_family_is_known_by_the_pipelines_class(loaded: Loaded) -> None:
    assert family_name(ModelConfig(path=str(loaded.folder))) == ("flux" if is_flux(loaded) else "sd3")


@torch.no_grad()  # which attention runs depends on it
def test_prompts_are_encoded_as_by_the_stock_pipeline(loaded: Loaded) -> None:
    prompts = [*PROMPTS, ""]
    if is_flux(loaded):
        states, pooled, _ = loaded.stock.encode_prompt(prompts, None)
    else:
        states, _, pooled, _ = loaded.stock.encode_prompt(prompts, None, None, do_classifier_free_guidance=False)
    found = loaded.ours.encode_text(prompts)
    assert torch.equal(found["states"], states)
    assert torch.equal(found["pooled"], pooled)
    assert torch.equal(loaded.ours.unconditional()["states"][0], states[-1])
    # Text reaches the states of each encoder, unless there is none.
    parts = {"states": 0, "pooled": 0} if is_flux(loaded) else {"states": 32, "pooled": 0}
    for key, start in parts.items():
        same = torch.equal(found[key][0, start:], found[key][1, start:])
        assert same == (loaded.name == "sd3-without-t5" and key == "states")


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"height": 24, "width": 40},
        {"guidance_scale": 1.0},
        {"guidance_scale": 0.0, "num_inference_steps": 1},
    ],
)
def test_images_are_those_of_the_stock_pipeline(loaded: Loaded, settings: dict[str, Any]) -> None:
    expected = draw(loaded, PROMPTS, [5, 6], **settings)
    noise = torch.cat([initial_noise(loaded.ours, seed, *expected.shape[-2:]) for seed in (5, 6)])
    found = loaded.ours.sample(
        loaded.ours.encode_text(PROMPTS),
        noise,
        steps=settings.get("num_inference_steps", 3),
        guidance=settings.get("guidance_scale", 4.0),
    )
    # The stock pipeline encodes no prompt once for each image, and a batch of another size rounds otherwise.
    assert torch.allclose(found / 2 + 0.5, expected, rtol=0, atol=1e-5)
    assert float(expected.std()) > 0.05, "a picture without content would be equal to any other"


def test_a_negative_prompt_leads_as_in_the_stock_pipeline(loaded: Loaded) -> None:
    # A distilled model's own input is 1, no guidance, where the second prediction guides.
    stock = {"true_cfg_scale": 4.0, "guidance_scale": 1.0} if is_flux(loaded) else {}
    expected = draw(loaded, PROMPTS, [5, 6], negative_prompt=["a spoon"] * 2, **stock)
    config = RenderConfig(steps=3, guidance=4.0)
    found = render(loaded.ours, PROMPTS, [5, 6], config, "a spoon").float() / 255
    assert float((found - expected).abs().max()) < 0.51 / 255
    assert float((found - render(loaded.ours, PROMPTS, [5, 6], config).float() / 255).abs().max()) > 2 / 255


def test_guidance_without_a_negative_prompt_has_no_effect_on_schnell_alone(loaded: Loaded) -> None:
    weak, strong = (
        render(loaded.ours, PROMPTS, [5, 6], RenderConfig(steps=2, guidance=guidance)).float() / 255
        for guidance in (1.5, 6.0)
    )
    assert torch.equal(weak, strong) == (loaded.name == "flux-schnell")


def test_a_prediction_is_the_velocity_of_the_stock_pipelines_only_step(loaded: Loaded) -> None:
    """One step leads from noise at sigma = 1 to x_1 - v, whatever the scheduler's shift is."""
    noise = torch.cat([initial_noise(loaded.ours, seed, 16, 24) for seed in (5, 6)])
    guidance = TRAINING_GUIDANCE if is_flux(loaded) else 1.0
    settings = {"width": 24, "num_inference_steps": 1, "guidance_scale": guidance, "output_type": "latent"}
    latents = draw(loaded, PROMPTS, [5, 6], **settings)
    if is_flux(loaded):
        latents = unpacked(latents, 4, 6)
    found = loaded.ours.predict(noise, torch.tensor([LAST, LAST]), loaded.ours.encode_text(PROMPTS))
    assert torch.allclose(found, noise - latents, atol=1e-5)


def unpacked(tokens: Tensor, height: int, width: int) -> Tensor:
    """Return FLUX's tokens as latents, one value at a time."""
    count, _, values = tokens.shape
    latents = torch.zeros(count, values // 4, height, width)
    for row in range(height):
        for column in range(width):
            token = (row // 2) * (width // 2) + column // 2
            latents[:, :, row, column] = tokens[:, token].view(count, -1, 4)[:, :, 2 * (row % 2) + column % 2]
    return latents


def test_noise_is_added_as_by_the_models_own_scheduler(loaded: Loaded) -> None:
    latents, noise = torch.randn(4, 16, 4, 4), torch.randn(4, 16, 4, 4)
    timesteps = torch.tensor([0, 10, 500, LAST])
    own = FlowMatchEulerDiscreteScheduler.from_config(loaded.stock.scheduler.config)
    loaded.ours.sample(loaded.ours.encode_text(PROMPTS), torch.randn(2, 16, 4, 4), steps=2, guidance=2.0)
    # The scheduler counts from the noisiest level.
    expected = own.scale_noise(latents, own.timesteps[LAST - timesteps], noise)
    assert torch.equal(loaded.ours.add_noise(latents, noise, timesteps), expected)
    sigmas = loaded.ours.sigmas(torch.arange(1000))
    assert (sigmas.diff() > 0).all()
    assert float(sigmas[-1]) == 1.0
    shift = 1.0 if is_flux(loaded) else 3.0
    assert float(sigmas[499]) == pytest.approx(shift * 0.5 / (1 + (shift - 1) * 0.5), rel=1e-5)


def test_the_target_is_the_direction_in_which_noise_is_added(loaded: Loaded) -> None:
    latents, noise = torch.randn(1, 16, 4, 4).double(), torch.randn(1, 16, 4, 4).double()
    low, high = torch.tensor([300]), torch.tensor([700])
    step = (loaded.ours.sigmas(high) - loaded.ours.sigmas(low)).double()
    change = loaded.ours.add_noise(latents, noise, high) - loaded.ours.add_noise(latents, noise, low)
    assert torch.allclose(change / step, loaded.ours.target(latents, noise, low), atol=1e-5)


def test_latents_survive_a_round_through_scale_and_shift(loaded: Loaded) -> None:
    images = torch.rand(1, 3, 16, 24) * 2 - 1
    raw = loaded.stock.vae.encode(images).latent_dist.mode()
    latents = loaded.ours.encode_images(images)
    assert tuple(latents.shape[1:]) == loaded.ours.latent_shape(16, 24) == (16, 4, 6)
    assert torch.equal(latents, (raw - 0.0609) * 1.5305)
    assert torch.allclose(
        loaded.ours.decode_latents(latents), loaded.stock.vae.decode(raw).sample.clamp(-1, 1), atol=1e-5
    )


@pytest.mark.parametrize("side", [12, 20, 0, -8])
def test_sides_are_whole_tokens(loaded: Loaded, side: int) -> None:
    assert (loaded.ours.default_size, loaded.ours.size_multiple) == (16, 8)
    with pytest.raises(ConfigError, match="not a positive multiple of 8"):
        loaded.ours.latent_shape(16, side)


def test_a_prompt_may_be_as_long_as_the_t5_reads_and_the_clips_read_its_start(loaded: Loaded) -> None:
    if loaded.name == "sd3-without-t5":
        with pytest.raises(PromptError, match=r"has 62 tokens and the model reads 32.*at most 30 tokens"):
            loaded.ours.encode_text([LONGER_THAN_CLIPS])
        return
    limit = 512 if is_flux(loaded) else 256
    assert loaded.ours.max_tokens == limit
    loaded.ours.check_prompt("house " * (limit - 1))
    with pytest.raises(PromptError, match=rf"has {limit + 1} tokens and the model reads {limit}"):
        loaded.ours.check_prompt("house " * limit)
    expected = draw(loaded, [LONGER_THAN_CLIPS], [5])
    found = loaded.ours.sample(
        loaded.ours.encode_text([LONGER_THAN_CLIPS]), initial_noise(loaded.ours, 5), steps=3, guidance=4.0
    )
    assert torch.equal(found / 2 + 0.5, expected)


def test_parts_take_no_other_memory(loaded: Loaded) -> None:
    config = ModelConfig(path=str(loaded.folder))
    networks = {
        parts: {
            name
            for name, part in load_model(config, parts).pipeline.components.items()  # type: ignore[attr-defined]
            if isinstance(part, torch.nn.Module)
        }
        for parts in PARTS
    }
    assert networks["denoiser"] == {"transformer"}
    assert networks["text"] == {name for name in loaded.stock.components if name.startswith("text_encoder")} - (
        {"text_encoder_3"} if loaded.name == "sd3-without-t5" else set()
    )


def test_laid_out_latents_are_packed_alike(loaded: Loaded) -> None:
    noisy, timesteps = torch.randn(2, 16, 4, 6), torch.tensor([10, 900])
    prompts = loaded.ours.encode_text(PROMPTS)
    laid_out = noisy.contiguous(memory_format=torch.channels_last)
    assert torch.allclose(
        loaded.ours.predict(laid_out, timesteps, prompts), loaded.ours.predict(noisy, timesteps, prompts), atol=1e-6
    )


def test_half_precision_is_that_of_the_stock_pipeline(loaded: Loaded) -> None:
    half = load_model(ModelConfig(path=str(loaded.folder), dtype="bfloat16"))
    stock = PICO_FLOW_MODELS[loaded.name].stock(loaded.folder).to(torch.bfloat16)
    expected = draw(loaded._replace(stock=stock), ["a knife"], [5]).float()
    noise = initial_noise(half, 5)
    found = half.sample(half.encode_text(["a knife"]), noise, steps=3, guidance=4.0).float()
    # Half a grey level and the numbers' own rounding: 2^-9 of at most 1.
    assert float((found / 2 + 0.5 - expected).abs().max()) < 1 / 255
    # Cached states are fp32, and adapters as well.
    states = {key: value.float() for key, value in half.encode_text(["a knife"]).items()}
    predicted = half.predict(torch.randn(1, 16, 4, 4), torch.tensor([500]), states)
    assert (noise.dtype, predicted.dtype) == (torch.bfloat16, torch.bfloat16)
