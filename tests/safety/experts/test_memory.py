"""The memory of a step: traced bytes against closed forms and a real step's, and the choice of a plan that fits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from safety.dataset.preferences import PreferenceSet
from safety.errors import ConfigError
from safety.experts import ExpertConfig, memory
from safety.experts.cards import RenderMemory, card_preset, presets
from safety.experts.coverage import coverage
from safety.experts.expert import Expert
from safety.experts.memory import GIB, StepMemory, choose_plan, free_bytes, latents_of, measure_step, weight_bytes
from safety.experts.passes import PassPlan
from safety.experts.tracing import LiveBytes
from safety.families import ModelConfig, ModelFamily, load_model
from safety.rendering import RenderConfig

MakeModel = Callable[[], ModelFamily]
MakeConfig = Callable[..., ExpertConfig]
MEMORY = StepMemory(base=1000, adapter=100, plain=100, checkpointed=10, kept=1)


def test_live_bytes_are_those_of_what_is_alive() -> None:
    given = torch.zeros(8, 4)
    with LiveBytes() as live:
        live.ignore([given])
        first = given + 1  # 128 bytes
        second = torch.cat([first, first])  # 256 more
        assert live.live == 384
        first.view(4, 8).add_(1)
        assert live.live == 384, "a view and a change in place are no new memory"
        del first
        assert live.live == 256
        _third = second * 2
        del second
    assert (live.live, live.peak) == (256, 512)


def test_a_traced_step_is_a_real_ones(
    tiny_model_dir: Path, make_model: MakeModel, data: PreferenceSet, make_config: MakeConfig
) -> None:
    config = make_config(precision="fp32", objective={"name": "diffusion-dpo"}, benign_rows=0, validation_rows=0)
    traced = measure_step(ModelConfig(path=str(tiny_model_dir)), config, (4, 4, 4), None)
    model = make_model()
    assert traced.base == weight_bytes(model.denoiser)
    expert = Expert(model, data, config, seed=0)
    trained = sum(parameter.numel() for parameter in expert.parameters_by_name().values())
    assert traced.adapter == 5 * 4 * trained
    with LiveBytes() as live:
        live.ignore(model.denoiser.parameters())
        expert(0, 0).loss.backward()
    found = traced.peak(PassPlan(), latents_of(config)) - traced.base - traced.adapter
    assert found == pytest.approx(live.peak, rel=0.15)
    assert traced.checkpointed is not None
    assert traced.checkpointed < traced.plain


def test_a_step_over_fp16_is_traced_as_one_over_bf16(tiny_model_dir: Path, make_config: MakeConfig) -> None:
    config = make_config(precision="auto", validation_rows=0)
    brief, ranged = (
        measure_step(ModelConfig(path=str(tiny_model_dir), dtype=name), config, (4, 4, 4))
        for name in ("float16", "bfloat16")
    )
    assert brief.base == ranged.base
    # Its gradients are scaled by one more number.
    assert brief.plain == pytest.approx(ranged.plain, rel=0.01)


@pytest.mark.parametrize(
    ("free", "expected"),
    [
        # By MEMORY with 10 latents: 2110 bytes in one pass, 1210 with checkpointing, then 1010 + 100 + 10 a latent.
        (2300, PassPlan()),
        (2200, PassPlan(checkpointing=True)),
        (1300, PassPlan(checkpointing=True)),
        (1260, PassPlan(images=7, checkpointing=True)),
        (1195, PassPlan(images=1, checkpointing=True)),
    ],
    ids=str,
)
def test_the_fastest_plan_that_fits_is_taken(free: int, expected: PassPlan) -> None:
    config = ExpertConfig(rows=5, benign_rows=0, objective={"name": "diffusion-dpo"}, validation_rows=0)  # type: ignore[arg-type]
    # A share of 6% is the allocator's.
    assert choose_plan(MEMORY, config, 10, free) == expected


def test_several_passes_are_taken_where_checkpointing_is_off() -> None:
    config = ExpertConfig(rows=5, benign_rows=0, objective={"name": "diffusion-dpo"}, checkpointing="off")  # type: ignore[arg-type]
    assert choose_plan(MEMORY, config, 10, 1800) == PassPlan(images=5)


def test_what_is_set_is_kept() -> None:
    config = ExpertConfig(micro_batch=2, checkpointing="off")
    assert choose_plan(MEMORY, config, 28, 1) == PassPlan(images=2)
    assert choose_plan(None, ExpertConfig(), 28, 1) == PassPlan()
    half = ExpertConfig(micro_batch=2)
    assert choose_plan(MEMORY, half, 28, 10**6) == PassPlan(images=2)
    assert choose_plan(MEMORY, half, 28, 1300) == PassPlan(images=2, checkpointing=True)


def test_a_card_too_small_says_what_to_change() -> None:
    with pytest.raises(ConfigError, match="needs 1.0 GiB at least, and 0.5 GiB") as refused:
        choose_plan(MEMORY.model_copy(update={"base": GIB}), ExpertConfig(), 28, GIB // 2)
    assert "nf4" in refused.value.fix


def test_a_card_takes_the_least_quantisation_that_fits() -> None:
    steps = {name: MEMORY.model_copy(update={"base": size * GIB}) for name, size in {"none": 20, "int8": 10}.items()}
    renders = {
        name: RenderMemory(weights=size * GIB, latent=GIB, image=GIB) for name, size in {"none": 20, "int8": 10}.items()
    }
    config = ExpertConfig()
    small, middle, large = (card_preset(card, steps, renders, config) for card in (8, 16, 48))  # type: ignore[arg-type]
    assert (small.plan, small.render_batch) == (None, 0)
    assert (middle.quantize, middle.plan) == ("int8", PassPlan())
    assert middle.render_batch == 2  # (0.94 * 14.9 GiB - 10) / 2
    assert (large.quantize, large.render_batch) == ("none", 11)


def test_checkpointing_that_a_denoiser_lacks_is_left_to_its_passes_to_refuse() -> None:
    lacking = MEMORY.model_copy(update={"checkpointed": None})
    assert choose_plan(lacking, ExpertConfig(checkpointing="on"), 28, 10**6) == PassPlan(checkpointing=True)


def test_a_driver_without_the_device_measures_the_type_that_is_set(tiny_model_dir: Path) -> None:
    config, sizes = ExpertConfig(precision="auto"), {}
    for name in ("float32", "bfloat16", "auto"):
        model = ModelConfig(path=str(tiny_model_dir), device="cuda", dtype=name)  # type: ignore[arg-type]
        sizes[name] = measure_step(model, config, (4, 4, 4)).base
    assert sizes["float32"] == 2 * sizes["bfloat16"] == 2 * sizes["auto"]


def test_presets_train_on_images_of_the_size_that_is_rendered(tiny_model_dir: Path) -> None:
    model, config = ModelConfig(path=str(tiny_model_dir)), ExpertConfig()
    small, large = (presets(model, config, RenderConfig(height=side, width=side), [8])[0] for side in (16, 64))
    assert small.step is not None
    assert large.step is not None
    assert large.step > 2 * small.step


def test_the_pages_of_files_that_were_read_do_not_fill_a_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mib = 2**20
    for name, value in {"memory.max": 100 * mib, "memory.current": 90 * mib}.items():
        (tmp_path / name).write_text(f"{value}\n")
    (tmp_path / "memory.stat").write_text(f"anon {30 * mib}\ninactive_file {40 * mib}\nactive_file {20 * mib}\n")
    monkeypatch.setattr(memory, "CONTROL_GROUP", tmp_path)
    assert free_bytes(torch.device("cpu")) == 70 * mib
    (tmp_path / "memory.max").write_text("max\n")
    assert free_bytes(torch.device("cpu")) > 100 * mib


def test_free_bytes_stay_below_the_share_and_the_machine() -> None:
    whole = free_bytes(torch.device("cpu"))
    assert 0 < free_bytes(torch.device("cpu"), 0.001) < whole


def test_few_distinct_batches_see_few_rows(data: PreferenceSet, make_config: MakeConfig) -> None:
    training = data.rows("train")  # 6 pairs, 12 rows
    config = make_config(rows=2, benign_rows=2, steps=100, distinct_batches=3)
    assert coverage(config, len(training)) == (6, 12)
    assert "6 of 12 preference rows (50%)" in coverage(config, len(training)).text
    seen = {training.row_id(row) for step in range(100) for row in training.schedule(0, step % 3, config.rows)}
    assert len(seen) == 6
    assert coverage(config.model_copy(update={"distinct_batches": None}), len(training)).share == 1
    assert coverage(config.model_copy(update={"distinct_batches": None, "steps": 2}), len(training)).seen == 4


def test_a_model_without_weights_has_its_shapes(tiny_model_dir: Path) -> None:
    from safety.experts.memory import load_skeleton

    config = ModelConfig(path=str(tiny_model_dir))
    bare, real = load_skeleton(config, torch.bfloat16, "all"), load_model(config)
    assert {p.device.type for p in bare.denoiser.parameters()} == {"meta"}
    assert {n: p.shape for n, p in bare.denoiser.named_parameters()} == {
        n: p.shape for n, p in real.denoiser.named_parameters()
    }
    assert {p.device.type for p in load_model(config).denoiser.parameters()} == {"cpu"}
