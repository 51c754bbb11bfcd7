"""Single files in original layout, made of stock pipelines: each loads as its folder does, or says why not."""

from __future__ import annotations

import json
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import safety.exports.original_layout as exports
from safety.errors import ArtifactFormatError, ConfigError, SafetyError
from safety.families import ModelConfig, family_name, load_model
from safety.families.identity import model_identity
from safety.families.single_file import LAYOUTS, layout_folder
from safety.families.source import model_folder, model_index
from tests.support.original_layout import full_size, original, save_original, sparse_file
from tests.support.pico_models import PICO_MODELS


@pytest.fixture(scope="module")
def pico(tiny_model_dir: Path) -> Any:
    from diffusers import StableDiffusionPipeline

    return StableDiffusionPipeline.from_pretrained(tiny_model_dir, safety_checker=None)


def config(path: Path, tmp_path: Path, **settings: Any) -> ModelConfig:
    return ModelConfig(path=str(path), cache=tmp_path / "cache", **settings)


def same(one: nn.Module, other: nn.Module) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_single_file_is_unpacked_once(pico: Any, tiny_model_dir: Path, tmp_path: Path) -> None:
    file = save_original(pico, "1", tmp_path / "model.safetensors")
    settings = config(file, tmp_path, settings=str(tiny_model_dir))
    folder = model_folder(settings)
    made = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    assert model_folder(settings) == folder
    assert {path: path.stat().st_mtime_ns for path in made} == made


def test_an_unpacked_folder_depends_on_the_file_s_content_and_not_on_its_place(
    pico: Any, tiny_model_dir: Path, tmp_path: Path
) -> None:
    file = save_original(pico, "1", tmp_path / "model.safetensors")
    moved = Path(shutil.copyfile(file, tmp_path / "other.safetensors"))
    settings = {"settings": str(tiny_model_dir)}
    identities = {model_identity(config(path, tmp_path, **settings)) for path in (file, moved)}
    assert len(identities) == 1
    assert model_identity(config(file, tmp_path, prediction="epsilon", **settings)) not in identities
    weights = load_file(file)
    weights["model.diffusion_model.out.2.bias"] += 1
    save_file(weights, moved, metadata={"format": "pt"})
    assert model_identity(config(moved, tmp_path, **settings)) not in identities


def test_what_a_folder_of_settings_says_counts_whatever_it_is_called(
    pico_model_dir: Callable[[str], Path], tmp_path: Path
) -> None:
    named = Path(shutil.copytree(pico_model_dir("stable-diffusion-2"), tmp_path / "stable-diffusion-2"))
    stock = PICO_MODELS["stable-diffusion-2"].stock(named)
    file = save_original(stock, "2", tmp_path / "model.safetensors")
    folder = model_folder(config(file, tmp_path, settings=str(named)))
    scheduler = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    assert scheduler["prediction_type"] == "v_prediction"


@pytest.mark.parametrize(("name", "layout"), [("stable-diffusion-1", "1"), ("stable-diffusion-2", "2"), ("sdxl", "xl")])
def test_a_single_file_of_each_layout_is_unpacked_to_what_the_stock_pipeline_saves(
    pico_model_dir: Callable[[str], Path], tmp_path: Path, name: str, layout: str
) -> None:
    folder = pico_model_dir(name)
    stock = PICO_MODELS[name].stock(folder)
    extra = {"conditioner.embedders.1.model.logit_scale": torch.ones(())} if layout == "xl" else {}
    file = save_original(stock, layout, tmp_path / "model.safetensors", extra)
    settings = config(file, tmp_path, settings=str(folder), prediction=stock.scheduler.config.prediction_type)
    again = PICO_MODELS[name].stock(model_folder(settings))
    parts = [part for part, network in stock.components.items() if isinstance(network, nn.Module)]
    for part in parts:
        assert same(getattr(again, part), getattr(stock, part)), part
    assert model_index(settings)["_class_name"] == type(stock).__name__
    ours, expected = load_model(settings), load_model(ModelConfig(path=str(folder)))
    noise = torch.randn((1, *ours.latent_shape(16, 16)), generator=torch.Generator().manual_seed(5))
    images = [m.sample(m.encode_text(["a house"]), noise, steps=2, guidance=3.0) for m in (ours, expected)]
    assert torch.equal(*images)


@pytest.mark.parametrize("kinds", [{"": torch.float16}, {"": torch.float16, "first_stage_model": torch.float32}])
def test_numbers_keep_their_type_or_are_widened(
    pico: Any, tiny_model_dir: Path, tmp_path: Path, kinds: dict[str, torch.dtype]
) -> None:
    weights = {
        name: tensor.to(next(kinds[start] for start in reversed(kinds) if name.startswith(start))).contiguous().clone()
        for name, tensor in original(pico, "1").items()
    }
    file = tmp_path / "half.safetensors"
    save_file({**weights, "model_ema.decay": torch.ones(1), "betas": torch.rand(3)}, file)
    folder = model_folder(config(file, tmp_path, settings=str(tiny_model_dir)))
    for part in ("unet", "vae", "text_encoder"):
        [stored] = (folder / part).glob("*.safetensors")
        assert {t.dtype for t in load_file(stored).values() if t.is_floating_point()} == {list(kinds.values())[-1]}


SIZES = {
    "stable-diffusion-1": ("1", {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480}),
    "stable-diffusion-2": ("2", {"unet": 865_910_724, "vae": 83_653_863, "text_encoder": 340_387_840}),
    "stable-diffusion-xl": (
        "xl",
        {"unet": 2_567_463_684, "vae": 83_653_863, "text_encoder": 123_060_480, "text_encoder_2": 694_659_840},
    ),
}
"""The published models' numbers of parameters."""


@pytest.mark.parametrize("layout", SIZES)
def test_the_shipped_settings_are_those_of_the_published_models_and_their_files_are_known(
    tmp_path: Path, layout: str
) -> None:
    short, sizes = SIZES[layout]
    pipeline, networks = full_size(layout)
    assert {name: sum(p.numel() for p in network.parameters()) for name, network in networks.items()} == sizes
    file = sparse_file(original(pipeline, short), tmp_path / "full.safetensors")
    prediction = "v_prediction" if short == "2" else None
    settings = config(file, tmp_path, prediction=prediction)
    assert layout_folder(file, settings) == LAYOUTS / layout
    assert family_name(settings) == ("sdxl" if short == "xl" else "stable-diffusion")


@pytest.mark.parametrize("layout", SIZES)
def test_the_names_that_files_are_made_of_here_are_those_that_exports_write(layout: str) -> None:
    """Two tables of the original layout, made by two people: of this test's files, and of fused exports."""
    short, _ = SIZES[layout]
    pipeline, networks = full_size(layout)
    config = {name: json.loads((LAYOUTS / layout / name / "config.json").read_text()) for name in networks}
    weights = {name: network.state_dict() for name, network in networks.items()}
    exported = {exports.unet_name(name, config["unet"]) for name in weights.pop("unet")}
    exported |= {exports.vae_tensor(n, t, config["vae"])[0] for n, t in weights.pop("vae").items()}
    for part, tensors in weights.items():
        exported |= exports.text_tensors(part, tensors, config[part], xl=short == "xl").keys()
    assert exported == original(pipeline, short).keys()


def test_the_shipped_vocabulary_is_clip_s(pico: Any, tmp_path: Path) -> None:
    from transformers import CLIPTokenizer

    settings = tmp_path / "settings"
    pico.save_pretrained(settings)
    shutil.rmtree(settings / "tokenizer")
    shutil.copytree(LAYOUTS / "stable-diffusion-2" / "tokenizer", settings / "tokenizer")
    file = save_original(pico, "1", tmp_path / "model.safetensors")
    tokenizer = CLIPTokenizer.from_pretrained(
        model_folder(config(file, tmp_path, settings=str(settings))) / "tokenizer"
    )
    # Ids that OpenAI's tokenizer gives; "!" fills up in Stable Diffusion 2.x.
    assert tokenizer("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert (len(tokenizer), tokenizer.pad_token_id, tokenizer.model_max_length) == (49408, 0, 77)


def full(short: str, **changes: Any) -> dict[str, Tensor]:
    layout = {"1": "stable-diffusion-1", "2": "stable-diffusion-2", "xl": "stable-diffusion-xl"}[short]
    return {**original(full_size(layout)[0], short), **changes}


def meta(*shape: int) -> Tensor:
    return torch.empty(shape, device="meta")


@pytest.mark.parametrize(
    ("metadata", "extra", "setting", "expected"),
    [
        ({}, {}, "epsilon", "epsilon"),
        ({"modelspec.prediction_type": "v"}, {}, None, "v_prediction"),
        ({"modelspec.prediction_type": "epsilon"}, {}, "epsilon", "epsilon"),
        ({}, {"v_pred": meta(1)}, None, "v_prediction"),
        ({}, {}, None, "does not say what it predicts"),
        ({"modelspec.prediction_type": "v"}, {}, "epsilon", "says itself"),
    ],
)
def test_a_file_of_2x_says_what_it_predicts_or_the_setting_does(
    tmp_path: Path, metadata: dict[str, str], extra: dict[str, Tensor], setting: Any, expected: str
) -> None:
    from safety.families.single_file import predicted, read_header

    file = sparse_file(full("2", **extra), tmp_path / "model.safetensors", **metadata)
    settings = config(file, tmp_path, prediction=setting)
    if " " in expected:
        with pytest.raises(ConfigError, match=expected) as refused:
            layout_folder(file, settings)
        assert refused.value.field == "model.prediction"
    else:
        assert layout_folder(file, settings).name == "stable-diffusion-2"
        assert predicted(file, read_header(file), LAYOUTS / "stable-diffusion-2", settings) == expected


@pytest.mark.parametrize(
    ("tensors", "named"),
    [
        (lambda: {"lora_unet_mid_block.alpha": meta(1)}, "it is a LoRA"),
        (lambda: {"unet.mid_block.attentions.0.to_q.lora_A.weight": meta(1)}, "it is a LoRA"),
        (lambda: {"down_blocks.0.resnets.0.conv1.weight": meta(4, 4, 3, 3)}, "one network of a diffusers folder"),
        (lambda: {"encoder.conv_in.weight": meta(1), "decoder.conv_in.weight": meta(1)}, "a VAE alone"),
        (lambda: {"something": meta(1)}, "layout is unknown .*'something'"),
        (lambda: {k: v for k, v in full("1").items() if "model.diff" in k}, "holds no VAE and no text encoder"),
        (lambda: {k: v for k, v in full("1").items() if "cond_stage" not in k}, "holds no text encoder"),
        (lambda: full("1", **{"model.diffusion_model.input_blocks.0.0.weight": meta(320, 9, 3, 3)}), "'inpainting'"),
        (lambda: full("xl", edm_mean=meta(4)), "'playground-v2-5'"),
    ],
)
def test_a_file_that_is_no_known_model_says_what_it_is(tmp_path: Path, tensors: Any, named: str) -> None:
    file = sparse_file(tensors(), tmp_path / "file.safetensors")
    with pytest.raises(SafetyError, match=named) as refused:
        family_name(config(file, tmp_path))
    assert refused.value.field == "model.path"


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (
            lambda weights: weights.pop("model.diffusion_model.out.2.bias"),
            "lacks weights of one of its networks",
        ),
        (lambda weights: weights.pop("cond_stage_model.transformer.text_model.final_layer_norm.bias"), "text_encoder"),
        (
            lambda weights: weights["first_stage_model.decoder.conv_out.bias"].fill_(float("nan")),
            "conv_out.bias has values",
        ),
        (lambda weights: weights.update({"model.diffusion_model.out.2.bias": torch.zeros(3)}), "cannot be loaded"),
        (
            lambda weights: weights.update({"model.diffusion_model.time_embed.cond_proj.weight": torch.zeros(4, 4)}),
            "it is of another kind",
        ),
        (
            lambda weights: [weights.pop(name) for name in list(weights) if name.startswith("cond_stage")],
            "lacks a whole network .*CLIPTextModel",
        ),
    ],
)
def test_a_file_with_missing_odd_or_broken_weights_names_them(
    pico: Any, tiny_model_dir: Path, tmp_path: Path, spoil: Any, named: str
) -> None:
    weights = {name: tensor.contiguous().clone() for name, tensor in original(pico, "1").items()}
    spoil(weights)
    file = tmp_path / "file.safetensors"
    save_file(weights, file)
    with pytest.raises(ArtifactFormatError, match=named):
        load_model(config(file, tmp_path, settings=str(tiny_model_dir)))
    unpacked = list((tmp_path / "cache" / "unpacked").glob("[!.]*/"))
    assert len(unpacked) == ("conv_out.bias has" in named), "what cannot be unpacked leaves nothing"


def test_a_full_disk_is_a_known_error_and_leaves_nothing(pico: Any, tiny_model_dir: Path, tmp_path: Path) -> None:
    file = save_original(pico, "1", tmp_path / "file.safetensors")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, before[1]))
    try:
        with pytest.raises(ConfigError, match=r"model\.cache: .*cannot be unpacked into"):
            model_folder(config(file, tmp_path, settings=str(tiny_model_dir)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not [path for path in (tmp_path / "cache" / "unpacked").iterdir() if path.is_dir()]


def test_settings_that_are_no_folder_of_a_model_are_named(tmp_path: Path) -> None:
    file = sparse_file({"x": meta(1)}, tmp_path / "file.safetensors")
    for settings in ("org/name", "~nobody-here/x"):
        with pytest.raises(ConfigError) as refused:
            family_name(config(file, tmp_path, settings=settings))
        assert refused.value.field == "model.settings"


def test_cut_files_and_pointers_are_refused_as_in_a_folder(pico: Any, tmp_path: Path) -> None:
    file = save_original(pico, "1", tmp_path / "file.safetensors")
    data = file.read_bytes()
    for broken, named in (
        (data[:-9], "not a whole"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git-lfs pointer"),
    ):
        file.write_bytes(broken)
        with pytest.raises(ArtifactFormatError, match=named):
            family_name(config(file, tmp_path))


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("m.ckpt", "jobs.convert"),
        ("m.pt", "jobs.convert"),
        ("m.gguf", "diffusers folder"),
        ("m.pdparams", "diffusers folder"),
        ("m.zip", "model_index"),
    ],
)
def test_another_file_is_refused_with_a_fix(tmp_path: Path, name: str, named: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(SafetyError) as refused:
        family_name(config(tmp_path / name, tmp_path))
    assert named in refused.value.fix
