"""Stable Diffusion XL against the stock pipeline: no prompt, sizes, the VAE's range and precision; folders that are refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from safety.errors import ArtifactFormatError, ConfigError, SafetyError
from safety.families import ModelConfig, families, family_name, load_model
from safety.families.sdxl import Sdxl, check_folder
from safety.gates import GatePrompts, gather_prompt_moments
from tests.support.pico_models import build_sdxl, open_sdxl

PROMPT = "a kitchen knife"
SIZES = [(16, 16), (24, 16), (16, 32)]


@pytest.fixture(scope="module")
def source(pico_model_dir: Callable[[str], Path]) -> Path:
    return pico_model_dir("sdxl")


@pytest.fixture
def folder(source: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(source, tmp_path / "model"))


@pytest.fixture(scope="module")
def model(source: Path) -> Sdxl:
    return load(source)


@pytest.fixture(scope="module")
def stock(source: Path) -> Any:
    return open_sdxl(source)


def load(folder: Path, **settings: Any) -> Sdxl:
    found = load_model(ModelConfig(path=str(folder), **settings))
    assert isinstance(found, Sdxl)
    return found


def change(path: Path, **settings: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


def ours(model: Sdxl, size: tuple[int, int], negative: str | None) -> Tensor:
    noise = torch.randn((1, *model.latent_shape(*size)), generator=torch.Generator().manual_seed(5))
    against = None if negative is None else model.encode_text([negative])
    return (model.sample(model.encode_text([PROMPT]), noise, steps=3, guidance=3.0, negative=against) + 1) / 2


def theirs(stock: Any, size: tuple[int, int], negative: str | None) -> Tensor:
    images: Tensor = stock(
        PROMPT,
        negative_prompt=negative,
        height=size[0],
        width=size[1],
        num_inference_steps=3,
        guidance_scale=3.0,
        output_type="pt",
        generator=torch.Generator().manual_seed(5),
    ).images
    return images


@pytest.mark.parametrize("negative", [None, "", "a house"])
@pytest.mark.parametrize("size", SIZES)
def test_an_image_is_the_stock_pipelines(model: Sdxl, stock: Any, size: tuple[int, int], negative: str | None) -> None:
    assert torch.allclose(ours(model, size, negative), theirs(stock, size, negative), atol=1e-5)


def test_no_prompt_is_zeros_where_the_model_says_so_and_a_given_empty_one_is_encoded(
    model: Sdxl, tmp_path: Path
) -> None:
    assert all(not bool(value.any()) for value in model.unconditional().values())
    assert all(bool(value.any()) for value in model.encode_text([""]).values())
    build_sdxl(tmp_path, zeros=False)
    other = load(tmp_path)
    encoded = other.encode_text([""])
    assert all(torch.equal(value, encoded[key]) for key, value in other.unconditional().items())
    assert torch.allclose(ours(other, (16, 16), None), theirs(open_sdxl(tmp_path), (16, 16), None), atol=1e-5)


@pytest.mark.parametrize("size", SIZES)
def test_a_prediction_is_what_the_stock_pipelines_unet_predicts(model: Sdxl, stock: Any, size: tuple[int, int]) -> None:
    calls: list[tuple[Any, Any, Tensor]] = []

    def keep(_module: Any, arguments: Any, settings: Any, result: Any) -> None:
        calls.append((arguments, settings, result[0]))

    hook = stock.unet.register_forward_hook(keep, with_kwargs=True)
    try:
        stock(PROMPT, height=size[0], width=size[1], num_inference_steps=2, guidance_scale=1.0, output_type="latent")
    finally:
        hook.remove()
    assert len(calls) == 2
    for (noisy, timestep), _, expected in calls:
        with torch.no_grad():
            found = model.predict(noisy, timestep[None], model.encode_text([PROMPT]))
        assert torch.allclose(found, expected, atol=1e-5)


def test_the_size_changes_what_is_predicted(model: Sdxl, monkeypatch: pytest.MonkeyPatch) -> None:
    noisy, timesteps = torch.randn(1, 4, 4, 4), torch.tensor([500])
    prompts = model.encode_text([PROMPT])
    with torch.no_grad():
        square = model.predict(noisy, timesteps, prompts)
        monkeypatch.setattr(model, "size_multiple", 8)
        assert not torch.allclose(model.predict(noisy, timesteps, prompts), square, atol=1e-5)


def test_one_negative_prompt_serves_a_batch(model: Sdxl) -> None:
    prompts = model.encode_text([PROMPT, "a house"])
    noise = torch.randn((2, 4, 4, 4), generator=torch.Generator().manual_seed(1))
    for negative in (None, model.encode_text(["a skull"])):
        both = model.sample(prompts, noise, steps=2, guidance=3.0, negative=negative)
        for row in range(2):
            own = {key: value[row : row + 1] for key, value in prompts.items()}
            alone = model.sample(own, noise[row : row + 1], steps=2, guidance=3.0, negative=negative)
            assert torch.allclose(both[row], alone[0], atol=1e-4)


def test_a_vae_with_means_and_spreads_of_its_own_is_read_as_the_stock_pipeline_reads_it(tmp_path: Path) -> None:
    build_sdxl(tmp_path, vae={"latents_mean": [0.5, -0.25, 0.1, 1.0], "latents_std": [2.0, 1.5, 0.5, 1.0]})
    model = load(tmp_path)
    assert torch.allclose(ours(model, (16, 16), None), theirs(open_sdxl(tmp_path), (16, 16), None), atol=1e-5)
    images = torch.rand(1, 3, 16, 16) * 2 - 1
    vae: AutoencoderKL = model.pipeline.vae
    assert torch.allclose(model.decode_latents(model.encode_images(images)), vae(images).sample.clamp(-1, 1), atol=1e-4)


@pytest.mark.parametrize("upcast", [True, False])
def test_a_vae_that_overflows_in_half_precision_stays_in_fp32(tmp_path: Path, upcast: bool) -> None:
    build_sdxl(tmp_path, vae={"force_upcast": upcast})
    model = load(tmp_path, dtype="float16")
    assert model.denoiser.dtype == model.pipeline.text_encoder_2.dtype == torch.float16
    assert model.pipeline.vae.dtype == (torch.float32 if upcast else torch.float16)
    assert load(tmp_path, dtype="bfloat16").pipeline.vae.dtype == torch.bfloat16
    if upcast:
        # As the stock pipeline, which rounds the weights and then computes in fp32.
        whole = load(tmp_path)
        whole.pipeline.vae.half().float()
        latents = torch.randn(1, 4, 4, 4).half()
        assert torch.equal(model.decode_latents(latents), whole.decode_latents(latents))


def test_gates_preserve_no_prompt_for_free_where_it_is_zeros(model: Sdxl) -> None:
    unsafe, benign = ("a kitchen knife",), ("a house", "a tree")
    found = gather_prompt_moments(model, GatePrompts({"violence": unsafe}, benign))
    states = model.encode_text(benign)["states"].double().flatten(0, 1)
    assert torch.allclose(found.preserved, states.T @ states / len(states))


@pytest.mark.parametrize("kind", ["StableDiffusionXLImg2ImgPipeline", "StableDiffusionXLInpaintPipeline"])
def test_pipelines_of_the_same_parts_are_taken(folder: Path, kind: str) -> None:
    change(folder / "model_index.json", _class_name=kind, requires_aesthetics_score=False)
    assert load(folder).default_size == 16


def test_the_refiner_is_refused_by_name(folder: Path) -> None:
    change(
        folder / "model_index.json",
        _class_name="StableDiffusionXLImg2ImgPipeline",
        text_encoder=[None, None],
        tokenizer=[None, None],
        requires_aesthetics_score=True,
    )
    with pytest.raises(ConfigError, match="the refiner"):
        load(folder)


@pytest.mark.parametrize(
    ("file", "settings", "named"),
    [
        ("model_index.json", {"text_encoder_2": ["transformers", "CLIPTextModel"]}, "CLIPTextModelWithProjection"),
        ("model_index.json", {"text_encoder_2": [None, None]}, "names no text_encoder_2"),
        ("model_index.json", {"text_encoder_3": ["transformers", "T5EncoderModel"]}, "text_encoder_3"),
        ("unet/config.json", {"in_channels": 9}, "reads 9 channels"),
        ("unet/config.json", {"addition_embed_type": None}, "beside the prompt's states"),
        ("unet/config.json", {"projection_class_embeddings_input_dim": 24 + 5 * 8}, "reads 64 numbers"),
        ("unet/config.json", {"time_cond_proj_dim": 256}, "time_cond_proj_dim"),
        ("unet/config.json", {"cross_attention_dim": 32}, "width 32"),
        ("vae/config.json", {"latent_channels": 16}, "latents have 16"),
        ("scheduler/scheduler_config.json", {"_class_name": "EDMDPMSolverMultistepScheduler"}, "EDMDPM"),
        ("scheduler/scheduler_config.json", {"prediction_type": "sample"}, "'sample'"),
    ],
)
def test_parts_that_are_not_the_familys_are_refused_before_anything_is_loaded(
    folder: Path, file: str, settings: dict[str, Any], named: str
) -> None:
    change(folder / file, **settings)
    with pytest.raises(SafetyError, match=named) as refused:
        check_folder(folder)
    assert refused.value.field == "model.path"


@pytest.mark.parametrize("part", ["text_encoder_2", "tokenizer_2", "unet", "scheduler"])
def test_a_missing_part_is_named(folder: Path, part: str) -> None:
    shutil.rmtree(folder / part)
    with pytest.raises(ArtifactFormatError, match=f"/{part}"):
        load(folder)


def test_a_model_of_another_family_than_the_named_one_is_refused(source: Path, tiny_model_dir: Path) -> None:
    for family, path in (("sdxl", tiny_model_dir), ("stable-diffusion", source)):
        config = ModelConfig(family=family, path=str(path))
        assert family_name(config) == family
        with pytest.raises(ConfigError, match=f"the family '{family}' takes"):
            load_model(config)
    assert families["sdxl"].component == "unet"
