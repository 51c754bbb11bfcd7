"""What every family promises, on a small model of each (``PICO_MODELS``), against the stock pipeline of its own class.

A new family is covered by its entry there.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from safety.dataset.preferences import PreferenceSet
from safety.errors import ConfigError, PromptError
from safety.experts import ExpertConfig
from safety.experts.batch import BatchMaker
from safety.experts.checkpoint import Checkpointer
from safety.experts.engine import TorchEngine
from safety.experts.expert import Expert
from safety.experts.training import ExpertTraining
from safety.families import ModelConfig, ModelFamily, families, family_name, load_model
from safety.families.family import Conditioning, FamilyLoader
from safety.images import to_uint8
from safety.lora.attach import target_layers
from safety.lora.files import check_fits, load_lora, save_lora
from safety.lora.fuse import fused
from safety.lora.weights import LoraWeights
from safety.precision import HALF, DtypeName, compute_dtype
from tests.support.folder_store import FolderStore
from tests.support.pico_models import PICO_MODELS
from tests.support.small_sets import preferences, random_lora
from tests.support.small_world import RECIPE, knife_prompts

STEPS, GUIDANCE, PROMPT = 3, 3.0, "a kitchen knife"


class Opened:
    """One small model: its folder, ours, and the stock pipeline."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder
        self.config = ModelConfig(path=str(folder))
        self.model: ModelFamily = load_model(self.config)
        self.stock: Any = PICO_MODELS[name].stock(folder)

    @property
    def loader(self) -> FamilyLoader:
        return families[family_name(self.config)]

    def ours(self, size: tuple[int, int], negative: str | None = None) -> Tensor:
        """Return our image in [0, 1], sampled from the noise that the stock pipeline draws."""
        noise = torch.randn((1, *self.model.latent_shape(*size)), generator=torch.Generator().manual_seed(5))
        against = None if negative is None else self.model.encode_text([negative])
        conditioning = self.model.encode_text([PROMPT])
        found = self.model.sample(conditioning, noise, steps=STEPS, guidance=GUIDANCE, negative=against)
        return (found + 1) / 2

    def theirs(self, size: tuple[int, int], **settings: Any) -> Tensor:
        """Return the stock pipeline's image in [0, 1]."""
        images: Tensor = self.stock(
            PROMPT,
            height=size[0],
            width=size[1],
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            output_type="pt",
            generator=torch.Generator().manual_seed(5),
            **settings,
        ).images
        return images

    @property
    def side(self) -> int:
        return self.model.default_size


@pytest.fixture(scope="module", params=PICO_MODELS)
def opened(request: pytest.FixtureRequest, pico_model_dir: Callable[[str], Path]) -> Opened:
    return Opened(request.param, pico_model_dir(request.param))


def test_a_model_is_known_by_its_own_pipelines_class(opened: Opened) -> None:
    assert family_name(opened.config) == PICO_MODELS[opened.name].family
    assert opened.loader.pipeline_class == type(opened.stock).__name__
    assert type(getattr(opened.stock, opened.loader.component)) is type(opened.model.denoiser)


def test_an_image_is_the_stock_pipelines(opened: Opened) -> None:
    size = (opened.side, opened.side)
    assert torch.allclose(opened.ours(size), opened.theirs(size), atol=1e-5)


def test_so_is_one_of_another_size(opened: Opened) -> None:
    size = (opened.side, 2 * opened.side)
    found = opened.ours(size)
    assert found.shape == (1, 3, *size)
    assert torch.allclose(found, opened.theirs(size), atol=1e-5)


def test_latents_are_those_that_the_denoiser_takes_and_become_images_again(opened: Opened) -> None:
    images = torch.rand(2, 3, opened.side, opened.side) * 2 - 1
    latents = opened.model.encode_images(images)
    assert latents.shape == (2, *opened.model.latent_shape(opened.side, opened.side))
    decoded = opened.model.decode_latents(latents)
    assert decoded.shape == images.shape
    assert float(decoded.abs().max()) <= 1
    # The stock image processor's and VAE's round, in one call.
    assert torch.allclose(decoded, opened.stock.vae(images).sample.clamp(-1, 1), atol=1e-4)


def test_targets_and_predictions_have_the_latents_shape_and_depend_on_all_inputs(opened: Opened) -> None:
    model = opened.model
    shape = (2, *model.latent_shape(opened.side, opened.side))
    draw = torch.Generator().manual_seed(1)
    latents, noise = torch.randn(shape, generator=draw), torch.randn(shape, generator=draw)
    timesteps = torch.tensor([model.train_timesteps // 3, model.train_timesteps - 1])
    noisy = model.add_noise(latents, noise, timesteps)
    prompts, others = model.encode_text(["a knife", "a house"]), model.encode_text(["a house", "a knife"])
    with torch.no_grad():
        found = model.predict(noisy, timesteps, prompts)
        assert found.shape == noisy.shape == model.target(latents, noise, timesteps).shape == shape
        for changed in (
            model.predict(noisy.flip(0), timesteps, prompts),
            model.predict(noisy, timesteps.flip(0), prompts),
            model.predict(noisy, timesteps, others),
        ):
            assert not torch.allclose(found, changed, atol=1e-5)
        alone = model.predict(noisy[1:], timesteps[1:], {key: value[1:] for key, value in prompts.items()})
    assert torch.allclose(found[1:], alone, atol=1e-4), "a row depends on its batch"
    # The noisiest timestep is nearer to the noise than an early one.
    distance = (noisy - noise).flatten(1).norm(dim=1)
    assert distance[1] < distance[0]


def test_conditioning_has_the_batch_first_and_the_same_keys_without_a_prompt(opened: Opened) -> None:
    two, none = opened.model.encode_text(["a knife", "a house"]), opened.model.unconditional()
    assert two.keys() == none.keys()
    assert {len(value) for value in two.values()} == {2}
    assert all(none[key].shape == (1, *two[key].shape[1:]) for key in two)
    single = opened.model.encode_text(["a house"])
    assert all(torch.allclose(single[key][0], two[key][1], atol=1e-5) for key in two)


def test_what_cannot_be_read_or_drawn_is_refused(opened: Opened) -> None:
    with pytest.raises(PromptError, match=f"the model reads {opened.model.max_tokens}"):
        opened.model.encode_text(["house " * (opened.model.max_tokens + 1)])
    with pytest.raises(ConfigError, match="not a positive multiple"):
        opened.model.latent_shape(opened.side + 1, opened.side)


def test_parts_of_a_model_do_what_the_whole_does(opened: Opened) -> None:
    denoiser, text = load_model(opened.config, "denoiser"), load_model(opened.config, "text")
    prompts = text.encode_text([PROMPT])
    assert_equal(prompts, opened.model.encode_text([PROMPT]))
    assert_equal(text.unconditional(), opened.model.unconditional())
    noisy = torch.randn(1, *opened.model.latent_shape(opened.side, opened.side))
    timesteps = torch.tensor([10])
    assert denoiser.size_multiple == opened.model.size_multiple
    assert denoiser.default_size == opened.side
    with torch.no_grad():
        found, expected = (each.predict(noisy, timesteps, prompts) for each in (denoiser, opened.model))
    assert torch.equal(found, expected)
    for lacking in (lambda: denoiser.encode_text([PROMPT]), lambda: text.decode_latents(noisy)):
        with pytest.raises(ValueError, match="without its"):
            lacking()


def test_stored_states_are_read_whatever_the_models_own_type(opened: Opened) -> None:
    half = load_model(opened.config.model_copy(update={"dtype": "bfloat16"}))
    prompts = {name: value.float() for name, value in half.encode_text([PROMPT]).items()}
    noisy, timesteps = torch.randn(1, *half.latent_shape(opened.side, opened.side)), torch.tensor([500])
    with torch.no_grad():
        found = half.predict(noisy, timesteps, prompts).float()
        exact = opened.model.predict(noisy, timesteps, opened.model.encode_text([PROMPT]))
    assert (found - exact).norm() < 0.05 * exact.norm(), "more than bf16's rounding"
    assert bool(half.sample(prompts, noisy, steps=1, guidance=GUIDANCE).isfinite().all())


def test_a_dropped_caption_is_no_prompt_in_every_part(opened: Opened) -> None:
    rows = preferences(opened.model, knife_prompts(["violence"], ["train"], ["train"]), "violence")
    config = ExpertConfig(caption_dropout=0.5, rows=4, distinct_batches=None)
    maker = BatchMaker(opened.model, rows, config, seed=0)
    empty = opened.model.unconditional()
    drawn = [maker.step(step, 0, 1, benign=False).conditioning for step in range(4)]
    dropped = [
        [all(torch.equal(found[key][row], empty[key][0]) for key in found) for row in range(8)] for found in drawn
    ]
    some = [[any(torch.equal(found[key][row], empty[key][0]) for key in found) for row in range(8)] for found in drawn]
    assert dropped == some, "a part is that of no prompt and another is not"
    assert {True, False} == {row for step in dropped for row in step}


def assert_equal(one: Conditioning, other: Conditioning) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


def train(opened: Opened, folder: Path) -> tuple[PreferenceSet, LoraWeights]:
    """Train an expert for two steps on the family's own layers; return its rows and weights."""
    torch.set_num_threads(1)
    # Another one than the tests', for its denoiser is changed.
    model = load_model(opened.config)
    rows = preferences(model, knife_prompts(["violence"], ["train", "validation"], ["train", "validation"]), "violence")
    config = ExpertConfig.model_validate(
        {
            **RECIPE,
            "steps": 2,
            "rows": 4,
            "benign_rows": 2,
            "warmup": 0,
            "learning_rate": 0.3,
            "distinct_batches": None,
            "caption_dropout": 0.25,
            "validation_rows": 2,
            "lora": {"rank": 2, "alpha": 4.0, "targets": None},
        }
    )
    expert = Expert(model, rows, config, seed=0)
    result = ExpertTraining(expert, TorchEngine(expert), Checkpointer(FolderStore(folder), fingerprint="it")).run()
    assert len(result.history) == 2
    assert result.history[0]["winner_error"] == pytest.approx(result.history[0]["reference_winner_error"])
    assert result.history[1]["gradient_norm"] > 0
    return rows, expert.weights()


def test_an_expert_trains_and_draws_in_the_stock_pipeline_what_it_draws_here(opened: Opened, tmp_path: Path) -> None:
    _, weights = train(opened, tmp_path / "checkpoints")
    assert set(weights) == set(target_layers(opened.model, opened.model.lora_targets))
    file = save_lora(weights, tmp_path / "release", metadata={}, component=opened.loader.component)
    again = load_lora(file)
    check_fits(again, opened.model)
    size = (opened.side, opened.side)
    base = opened.ours(size)
    with fused(opened.model, again):
        ours = opened.ours(size)
    opened.stock.load_lora_weights(tmp_path / "release")
    try:
        theirs = opened.theirs(size)
    finally:
        opened.stock.unload_lora_weights()
    assert (as_pixels(ours) - as_pixels(theirs)).abs().max() <= 1
    assert (as_pixels(ours) - as_pixels(base)).abs().max() > 3, "the expert changes the image"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_an_expert_over_half_weights_is_that_of_fp32_up_to_rounding(opened: Opened, dtype: DtypeName) -> None:
    rows = preferences(opened.model, knife_prompts(["violence"], ["train"], ["train"]), "violence")
    half = load_model(opened.config.model_copy(update={"dtype": dtype}))
    # Not the weights themselves: AdamW moves those of no effect as far as the others, by the signs of their rounding.
    expected, found = (effect(opened, rows, adapter(model, rows)) for model in (load_model(opened.config), half))
    # One rounding of each of the denoiser's layers, forward and backward; it has some ten of them one behind the other.
    bound = 16 * torch.finfo(half.denoiser.dtype).eps
    assert 0 < (found - expected).norm() < bound * expected.norm()


def adapter(model: ModelFamily, rows: PreferenceSet) -> LoraWeights:
    """Return an expert of four steps; DPO alone would magnify rounding by its beta."""
    torch.set_num_threads(1)
    sizes = {"steps": 4, "rows": 4, "benign_rows": 2, "warmup": 0, "learning_rate": 0.003, "validation_rows": 0}
    settings = {
        "objective": {"name": "anchored-dpo", "beta": 1.0, "benign_weight": 30.0},
        "precision": "auto" if compute_dtype(model.denoiser) in HALF else "fp32",
        "lora": {"rank": 2, "targets": None},
    }
    expert = Expert(model, rows, ExpertConfig.model_validate({**sizes, **settings}), seed=0)
    ExpertTraining(expert, TorchEngine(expert)).run()
    return expert.weights()


def effect(opened: Opened, rows: PreferenceSet, weights: LoraWeights) -> Tensor:
    """Return what an adapter changes in the fp32 model's predictions for rows in new noise."""
    config = ExpertConfig(rows=4, benign_rows=2, distinct_batches=None)
    batch = BatchMaker(opened.model, rows.rows("train"), config, seed=9).step(7, 0, 1, benign=True)
    with torch.no_grad():
        base = opened.model.predict(batch.noisy, batch.timesteps, batch.conditioning)
        with fused(opened.model, weights):
            return opened.model.predict(batch.noisy, batch.timesteps, batch.conditioning) - base


def as_pixels(images: Tensor) -> Tensor:
    """Return images in [0, 1] as whole numbers of 255, signed."""
    return to_uint8(images * 2 - 1).to(torch.int16)


def test_an_adapter_of_another_family_does_not_fit(opened: Opened, pico_model_dir: Callable[[str], Path]) -> None:
    other = "sdxl" if PICO_MODELS[opened.name].family != "sdxl" else "stable-diffusion"
    strange = random_lora(load_model(ModelConfig(path=str(pico_model_dir(other)))), 1)
    with pytest.raises(Exception, match="base model"):
        check_fits(strange, opened.model)
