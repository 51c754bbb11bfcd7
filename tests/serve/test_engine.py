"""The engine against the stock pipeline, whatever shares a batch; and what it refuses."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from PIL import Image
from torch import Tensor

from safety.families import ModelConfig, load_model
from safety.images import decode_image
from serve.engine import Engine
from serve.errors import INTERNAL, ApiError
from serve.schema import Job, RenderedImage


def job(**change: object) -> Job:
    fields: dict[str, object] = {
        "prompt": "a house",
        "model": "aligned",
        "n": 1,
        "seed": 5,
        "steps": 4,
        "guidance": 3.0,
    }
    return Job(**{**fields, **change})  # type: ignore[arg-type]


def pictures(engine: Engine, *jobs: Job) -> list[Tensor]:
    outcomes = engine.render([task for each in jobs for task in engine.admit(each)])
    assert all(isinstance(outcome, RenderedImage) for outcome in outcomes)
    return [decode_image(outcome.png) for outcome in outcomes]  # type: ignore[union-attr]


def distance(first: Tensor, second: Tensor) -> float:
    """Return the mean absolute difference in steps of 1/255."""
    return float((first.float() - second.float()).abs().mean())


@pytest.fixture(scope="module")
def stock(tiny_model_dir: Path, tiny_lora_dir: Path) -> StableDiffusionPipeline:
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_model_dir, safety_checker=None)
    pipeline.load_lora_weights(tiny_lora_dir)
    return pipeline


@pytest.mark.parametrize(
    ("seed", "steps", "guidance", "size"), [(5, 4, 3.0, 16), (2**40 + 1, 7, 7.5, 16), (0, 3, 1.0, 16), (9, 4, 2.0, 24)]
)
def test_the_image_is_the_stock_pipelines_with_the_adapter(
    engine: Engine, stock: StableDiffusionPipeline, seed: int, steps: int, guidance: float, size: int
) -> None:
    [expected] = stock(
        "a house",
        num_inference_steps=steps,
        guidance_scale=guidance,
        height=size,
        width=size,
        generator=torch.Generator("cpu").manual_seed(seed),
        output_type="np",
    ).images
    [got] = pictures(engine, job(seed=seed, steps=steps, guidance=guidance, height=size, width=size))
    assert distance(got, torch.from_numpy(expected).permute(2, 0, 1) * 255) <= 1.0


def test_the_adapter_changes_the_image_and_the_base_model_stays_the_base(engine: Engine, tiny_model_dir: Path) -> None:
    aligned, base = pictures(engine, job(), job(model="base"))
    assert distance(aligned, base) > 1.0
    stock = StableDiffusionPipeline.from_pretrained(tiny_model_dir, safety_checker=None)
    assert isinstance(stock.scheduler, DDIMScheduler)
    generator = torch.Generator("cpu").manual_seed(5)
    [expected] = stock(
        "a house", num_inference_steps=4, guidance_scale=3.0, generator=generator, output_type="np"
    ).images
    assert distance(base, torch.from_numpy(expected).permute(2, 0, 1) * 255) <= 1.0


def test_a_batch_of_many_kinds_gives_each_image_as_if_alone(engine: Engine) -> None:
    jobs = [
        job(seed=1),
        job(seed=2, prompt="a knife on a blue background"),
        job(seed=1, steps=6),
        job(seed=1, model="base"),
        job(seed=3, guidance=1.0),
        job(seed=1, height=24, width=16),
        job(seed=4),
    ]
    together = pictures(engine, *jobs)
    alone = [pictures(engine, each)[0] for each in jobs]
    assert all(a.shape == b.shape and distance(a, b) < 0.1 for a, b in zip(together, alone, strict=True))
    assert distance(together[0], together[6]) > 1.0


def test_image_i_of_n_is_drawn_from_seed_plus_i(engine: Engine) -> None:
    several = pictures(engine, job(n=3, seed=10))
    alone = [pictures(engine, job(seed=10 + i))[0] for i in range(3)]
    assert all(distance(a, b) < 0.1 for a, b in zip(several, alone, strict=True))


@pytest.mark.parametrize("negative", ["a knife on a blue background", "blue"])
def test_a_negative_prompt_changes_the_image_and_equals_the_stock_pipelines(
    engine: Engine, stock: StableDiffusionPipeline, negative: str
) -> None:
    [expected] = stock(
        "a house",
        negative_prompt=negative,
        num_inference_steps=4,
        guidance_scale=3.0,
        generator=torch.Generator("cpu").manual_seed(5),
        output_type="np",
    ).images
    without, got = pictures(engine, job(), job(negative=negative))
    assert distance(got, torch.from_numpy(expected).permute(2, 0, 1) * 255) <= 1.0
    assert distance(got, without) > 0.5


def test_each_negative_prompt_of_a_batch_is_its_own_images(engine: Engine) -> None:
    jobs = [job(), job(negative="blue"), job(negative="a knife"), job(seed=6, negative="blue")]
    together, alone = pictures(engine, *jobs), [pictures(engine, each)[0] for each in jobs]
    assert all(distance(a, b) < 0.1 for a, b in zip(together, alone, strict=True))


def configured(engine: Engine, **settings: object) -> Engine:
    """Return an engine of the same models with other settings."""
    return Engine(engine._models, engine._config.model_copy(update=settings))


def bytes_of(engine: Engine, jobs: list[Job]) -> list[bytes]:
    outcomes = engine.render([task for each in jobs for task in engine.admit(each)])
    return [outcome.png or b"" for outcome in outcomes if isinstance(outcome, RenderedImage)]


def test_drawn_each_by_itself_an_images_bytes_do_not_depend_on_its_company(engine: Engine) -> None:
    exactly = configured(engine, exact_batch=1, batch_size=8)
    jobs = [
        job(seed=seed, prompt=f"a house on a {colour} background") for seed, colour in enumerate(["blue", "red"] * 4)
    ]
    alone = [bytes_of(exactly, [each])[0] for each in jobs]
    for count in (2, 3, 8):
        assert bytes_of(exactly, jobs[:count]) == alone[:count]
    assert bytes_of(exactly, jobs[::-1]) == alone[::-1]


def test_an_exact_batch_is_filled_up_to_its_size(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    exactly = configured(engine, exact_batch=3, batch_size=8)
    family, drawn = exactly._models["aligned"].family, []
    sample = family.sample

    def counting(conditioning: object, noise: Tensor, **rest: object) -> Tensor:
        drawn.append(len(noise))
        return sample(conditioning, noise, **rest)  # type: ignore[arg-type]

    monkeypatch.setattr(family, "sample", counting)
    assert len(bytes_of(exactly, [job(seed=seed) for seed in range(4)])) == 4
    assert drawn == [3, 3]


def test_without_one_an_image_differs_from_itself_alone_by_rounding_only(engine: Engine) -> None:
    loose = configured(engine, batch_size=8)
    jobs = [job(seed=seed) for seed in range(8)]
    together = pictures(loose, *jobs)
    for index, each in enumerate(jobs):
        assert (together[index].int() - pictures(loose, each)[0].int()).abs().max() <= 1
    assert bytes_of(loose, jobs) == bytes_of(loose, jobs), "equal batches give equal bytes"


@pytest.mark.parametrize(
    ("asked", "drawn"),
    [
        ((512, 512), (16, 16)),
        ((1024, 1024), (16, 16)),
        ((256, 256), (16, 16)),
        ((1792, 1024), (20, 12)),
        ((1024, 1536), (12, 20)),
        ((4, 4), (16, 16)),
        ((18, 16), (16, 16)),
        ((1, 2000), (8, 32)),
    ],
)
@pytest.mark.parametrize("resize", ["lanczos", "nearest"])
def test_a_size_that_the_model_does_not_draw_is_scaled_to(
    engine: Engine, asked: tuple[int, int], drawn: tuple[int, int], resize: str
) -> None:
    scaling = configured(engine, resize=resize)
    [outcome] = scaling.render(scaling.admit(job(width=asked[0], height=asked[1])))
    assert isinstance(outcome, RenderedImage)
    image = Image.open(io.BytesIO(outcome.png or b""))
    image.load()
    assert image.size == (outcome.width, outcome.height) == asked
    assert image.info["drawn"] == f"{drawn[0]}x{drawn[1]}"
    [small] = pictures(scaling, job(width=drawn[0], height=drawn[1]))
    method = Image.Resampling.LANCZOS if resize == "lanczos" else Image.Resampling.NEAREST
    expected = Image.fromarray(small.permute(1, 2, 0).numpy()).resize(asked, method)
    assert image.tobytes() == expected.tobytes()


def test_sizes_that_the_model_draws_are_never_scaled(engine: Engine) -> None:
    scaling = configured(engine, resize="lanczos")
    for side in (8, 16, 24, 32):
        [outcome] = scaling.render(scaling.admit(job(width=side, height=16)))
        assert isinstance(outcome, RenderedImage)
        image = Image.open(io.BytesIO(outcome.png or b""))
        assert (image.size, "drawn" in image.info) == ((side, 16), False)


@pytest.mark.parametrize("size", [(18, 16), (512, 512), (4, 16)])
def test_a_refused_size_names_those_that_are_not(engine: Engine, size: tuple[int, int]) -> None:
    with pytest.raises(ApiError) as caught:
        engine.admit(job(width=size[0], height=size[1]))
    message = caught.value.failure.message
    assert "from 8 to 32 pixels" in message
    assert "multiples of 4" in message
    assert "'auto' is the model's own, 16x16" in message


def test_the_png_names_model_release_and_seed_but_not_the_prompt(engine: Engine) -> None:
    [outcome] = engine.render(engine.admit(job(seed=77)))
    assert isinstance(outcome, RenderedImage)
    image = Image.open(io.BytesIO(outcome.png))
    image.load()
    assert image.info == {"model": "aligned", "release": "release-1", "seed": "77"}
    assert (image.size, image.mode) == ((16, 16), "RGB")


@pytest.mark.parametrize(
    ("change", "status", "param", "code"),
    [
        ({"model": "SECRET"}, 404, "model", "model_not_found"),
        ({"prompt": "a naked child"}, 400, "prompt", "content_policy_violation"),
        ({"prompt": "house " * 60}, 400, "prompt", "prompt_too_long"),
        ({"width": 18, "height": 16}, 400, "size", "invalid_value"),
        ({"width": 4, "height": 16}, 400, "size", "invalid_value"),
        ({"width": 16, "height": 4096}, 400, "size", "invalid_value"),
        ({"negative": "house " * 60}, 400, "negative_prompt", "prompt_too_long"),
        ({"prompt": "a child at the beach", "negative": "clothes"}, 400, "prompt", "content_policy_violation"),
        ({"prompt": "a naked person", "negative": "4dults, old"}, 400, "prompt", "content_policy_violation"),
    ],
)
def test_what_the_model_cannot_or_may_not_draw_is_refused(
    engine: Engine, change: dict[str, object], status: int, param: str, code: str
) -> None:
    with pytest.raises(ApiError) as caught:
        engine.admit(job(**change))
    failure = caught.value.failure
    assert (failure.status, failure.param, failure.code) == (status, param, code)
    assert "SECRET" not in failure.message
    assert "naked" not in failure.message


def test_the_policy_holds_for_the_base_model_too(engine: Engine) -> None:
    with pytest.raises(ApiError, match="content_policy_violation"):
        engine.admit(job(model="base", prompt="a n4ked ch1ld"))


def test_a_broken_group_fails_alone(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = engine.admit(job()) + engine.admit(job(model="base")) + engine.admit(job(seed=6))
    broken = engine._models["base"].family
    monkeypatch.setattr(broken, "sample", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("out of memory")))
    first, second, third = engine.render(tasks)
    assert isinstance(first, RenderedImage)
    assert isinstance(third, RenderedImage)
    assert second == INTERNAL
    with pytest.raises(RuntimeError, match="'base' cannot render"):
        engine.warm_up()


def test_rendering_leaves_no_trace_in_torchs_global_generator(engine: Engine) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    pictures(engine, job(n=2))
    assert torch.equal(before, torch.get_rng_state())


def test_models_are_listed(engine: Engine, tiny_model_dir: Path) -> None:
    assert [(model.id, model.aligned) for model in engine.models()] == [("aligned", True), ("base", False)]
    assert load_model(ModelConfig(path=str(tiny_model_dir))).default_size == 16
