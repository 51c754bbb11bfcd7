"""Folders as people download them: another family's, with pickles, variants or shards, and with damaged files."""

from __future__ import annotations

import json
import logging
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from safety.errors import ArtifactFormatError, SafetyError
from safety.families import ModelConfig, load_model
from safety.families.stable_diffusion_folder import check_folder
from safety.release import model_hash

UNET = "unet/diffusion_pytorch_model.safetensors"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 4\n"


@pytest.fixture
def folder(tiny_model_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model_dir, tmp_path / "model"))


def change(path: Path, **settings: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


def rename(path: Path, name: str) -> None:
    path.rename(path.with_name(name))


@pytest.mark.parametrize(
    "kind",
    [
        *("LatentConsistencyModelPipeline", "StableDiffusionInstructPix2PixPipeline", "AltDiffusionPipeline"),
        *("FluxKontextPipeline", "FluxFillPipeline"),
        *("OnnxStableDiffusionPipeline", "FlaxStableDiffusionPipeline", None, ["pipeline", "Custom"]),
    ],
)
def test_a_folder_of_another_pipeline_is_refused_by_its_class(folder: Path, kind: Any) -> None:
    change(folder / "model_index.json", _class_name=kind)
    with pytest.raises(SafetyError, match="no named pipeline" if kind is None else "no family takes"):
        load_model(ModelConfig(path=str(folder)))


@pytest.mark.parametrize(
    ("kind", "named"),
    [
        ("StableDiffusionXLPipeline", "it names no text_encoder_2"),
        ("StableDiffusionXLImg2ImgPipeline", "it names no text_encoder_2"),
        ("StableDiffusion3Pipeline", "the family 'sd3' takes"),
        ("FluxPipeline", "the family 'flux' takes"),
    ],
)
def test_a_folder_that_names_another_familys_pipeline_is_refused_by_its_parts(
    folder: Path, kind: str, named: str
) -> None:
    change(folder / "model_index.json", _class_name=kind)
    with pytest.raises(SafetyError, match=named):
        load_model(ModelConfig(path=str(folder)))


@pytest.mark.parametrize("kind", ["StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline"])
def test_pipelines_of_the_same_parts_are_taken(folder: Path, kind: str) -> None:
    change(folder / "model_index.json", _class_name=kind)
    assert load_model(ModelConfig(path=str(folder))).default_size == 16


@pytest.mark.parametrize(
    ("file", "settings", "named"),
    [
        ("model_index.json", {"text_encoder_2": ["transformers", "CLIPTextModelWithProjection"]}, "text_encoder_2"),
        ("model_index.json", {"text_encoder": ["transformers", "T5EncoderModel"]}, "T5EncoderModel"),
        ("model_index.json", {"unet": ["diffusers", "UNet2DModel"]}, "UNet2DModel"),
        ("model_index.json", {"unet": ["pipeline_own"]}, "not a library and a class"),
        ("model_index.json", {"vae": None}, "names no vae"),
        ("unet/config.json", {"_class_name": "UNet3DConditionModel"}, "UNet3DConditionModel"),
        ("unet/config.json", {"in_channels": 9}, "reads 9 channels"),
        ("unet/config.json", {"addition_embed_type": "text_time"}, "addition_embed_type"),
        ("unet/config.json", {"class_embed_type": "projection"}, "class_embed_type"),
        ("unet/config.json", {"time_cond_proj_dim": 256}, "time_cond_proj_dim"),
        ("unet/config.json", {"cross_attention_dim": 2048}, "width 2048"),
        ("vae/config.json", {"latent_channels": 16}, "latents have 16"),
        ("scheduler/scheduler_config.json", {"prediction_type": "sample"}, "'sample'"),
        ("scheduler/scheduler_config.json", {"_class_name": "FlowMatchEulerDiscreteScheduler"}, "FlowMatch"),
    ],
)
def test_parts_that_are_not_the_familys_are_refused_before_anything_is_loaded(
    folder: Path, file: str, settings: dict[str, Any], named: str
) -> None:
    change(folder / file, **settings)
    with pytest.raises(SafetyError, match=named) as refused:
        check_folder(folder)
    assert refused.value.field == "model.path"


def as_downloaded(folder: Path) -> list[str]:
    """Put beside the safetensors what the download of Stable Diffusion 1.5 has; return the names of the weights."""
    (folder / "safety_checker").mkdir()
    names = [
        *(
            "unet/diffusion_pytorch_model.bin",
            "unet/diffusion_pytorch_model.fp16.bin",
            "vae/diffusion_pytorch_model.bin",
        ),
        *("unet/diffusion_flax_model.msgpack", "unet/model.onnx", "unet/openvino_model.bin", "unet/weights.pb"),
        *("text_encoder/pytorch_model.bin", "safety_checker/pytorch_model.bin", "v1-5-pruned-emaonly.ckpt"),
        *("v1-5-pruned-emaonly.safetensors", "unet/diffusion_pytorch_model.fp16.safetensors"),
        "unet/diffusion_pytorch_model.non_ema.safetensors",
    ]
    for name in names:
        (folder / name).write_bytes(b"never opened")
    change(folder / "model_index.json", safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"])
    (folder / ".cache" / "huggingface").mkdir(parents=True)
    (folder / ".cache" / "huggingface" / "x.bin").write_bytes(b"x")
    return names


def test_a_stock_download_is_taken_and_what_is_not_read_is_named(
    folder: Path, tiny_model_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before, expected = model_hash(folder), load_model(ModelConfig(path=str(folder)))
    assert not caplog.records, "nothing lies beside the safetensors yet"
    names = as_downloaded(folder)
    with caplog.at_level(logging.WARNING):
        found = load_model(ModelConfig(path=str(folder)))
    [line] = [record.getMessage() for record in caplog.records if record.name.startswith("safety")]
    assert sorted(line.partition("ignored: ")[2].split(", ")) == sorted(names)
    pairs = zip(found.denoiser.parameters(), expected.denoiser.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    # Only the index, which names the safety checker now, has changed of what is read.
    shutil.copyfile(tiny_model_dir / "model_index.json", folder / "model_index.json")
    assert model_hash(folder) == before


@pytest.mark.parametrize(
    ("file", "other", "named"),
    [
        (UNET, "diffusion_pytorch_model.bin", "pickled"),
        ("text_encoder/model.safetensors", "pytorch_model.bin", "pickled"),
        ("vae/diffusion_pytorch_model.safetensors", "model.ckpt", "pickled"),
        (UNET, "diffusion_flax_model.msgpack", "for another tool"),
        (UNET, "model.onnx", "for another tool"),
        (UNET, "README", "holds no weights"),
    ],
)
def test_a_part_without_safetensors_is_refused_with_a_fix(folder: Path, file: str, other: str, named: str) -> None:
    rename(folder / file, other)
    with pytest.raises(ArtifactFormatError, match=named) as refused:
        check_folder(folder)
    assert "safetensors" in refused.value.fix
    assert Path(file).parts[0] in refused.value.message


@pytest.mark.parametrize("variant", ["fp16", "bf16", "non_ema"])
def test_variants_are_found_in_any_part_and_hashed(folder: Path, variant: str) -> None:
    before = model_hash(folder)
    rename(folder / UNET, f"diffusion_pytorch_model.{variant}.safetensors")
    rename(folder / "text_encoder" / "model.safetensors", f"model.{variant}.safetensors")
    (folder / "unet" / "LICENSE").write_text("a name without a dot")
    assert load_model(ModelConfig(path=str(folder))).default_size == 16
    named = model_hash(folder)
    assert named != before
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"never opened")
    (folder / "unet" / "diffusion_pytorch_model.ema_only.safetensors").write_bytes(b"not chosen")
    if variant in ("fp16", "bf16"):
        assert model_hash(folder) == named
    else:
        with pytest.raises(ArtifactFormatError, match="ema_only, non_ema"):
            model_hash(folder)


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_shards_are_read_and_hashed(folder: Path, variant: str | None) -> None:
    whole = load_model(ModelConfig(path=str(folder)))
    (folder / UNET).unlink()
    whole.denoiser.save_pretrained(folder / "unet", max_shard_size="40KB", variant=variant)  # type: ignore[operator]
    shards = sorted((folder / "unet").glob("*-of-*.safetensors"))
    assert len(shards) > 1
    sharded, before = load_model(ModelConfig(path=str(folder))), model_hash(folder)
    pairs = zip(sharded.denoiser.parameters(), whole.denoiser.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    shards[1].write_bytes(shards[1].read_bytes() + b"x")
    assert model_hash(folder) != before
    with pytest.raises(ArtifactFormatError, match=shards[1].name):
        check_folder(folder)
    shards[1].unlink()
    for call in (check_folder, model_hash):
        with pytest.raises(ArtifactFormatError, match=f"names {shards[1].name}, which is missing"):
            call(folder)


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_shards_that_lack_a_weight_or_their_list_are_known_errors(folder: Path, part: str) -> None:
    model = load_model(ModelConfig(path=str(folder)))
    [whole] = (folder / part).glob("*.safetensors")
    whole.unlink()
    getattr(model.pipeline, part).save_pretrained(folder / part, max_shard_size="40KB")  # type: ignore[attr-defined]
    shard = sorted((folder / part).glob("*-of-*.safetensors"))[-1]
    weights = load_file(shard)
    name = sorted(weights)[0]
    save_file({key: tensor for key, tensor in weights.items() if key != name}, shard, metadata={"format": "pt"})
    with pytest.raises(ArtifactFormatError, match=f"/{part}: its weights lack 1 of the network's, such as {name}"):
        load_model(ModelConfig(path=str(folder)))
    next((folder / part).glob("*.index.json")).unlink()
    with pytest.raises(ArtifactFormatError, match=f"/{part}: it holds .*-of-.*, and no list of its shards"):
        check_folder(folder)


DAMAGE: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "truncated": (lambda data: data[:-9], "not a whole safetensors file"),
    "cut in its head": (lambda data: data[:20], "not a whole safetensors file"),
    "too long": (lambda data: data + b"tail", "not a whole safetensors file"),
    "empty": (lambda _: b"", "it is empty"),
    "a git-lfs pointer": (lambda _: POINTER, "git-lfs pointer"),
    "an error page": (lambda _: b"<!DOCTYPE html><html>404</html>", "web page"),
    "a pickle": (lambda _: pickle.dumps({"weight": [0] * 99}), "not a whole safetensors file|pickle"),
    "torch's zip": (lambda _: b"PK\x03\x04" + b"0" * 99, "pickle under another name"),
    "noise": (lambda _: b"\xff" * 99, "not a whole safetensors file"),
}


@pytest.mark.parametrize("file", [UNET, "text_encoder/model.safetensors", "vae/diffusion_pytorch_model.safetensors"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_weights_are_named(folder: Path, file: str, damage: str) -> None:
    spoil, named = DAMAGE[damage]
    (folder / file).write_bytes(spoil((folder / file).read_bytes()))
    with pytest.raises(ArtifactFormatError, match=named) as refused:
        load_model(ModelConfig(path=str(folder)))
    assert file in refused.value.message


TEXTS = {
    "cut": (lambda data: data[: len(data) // 2], "not valid JSON"),
    "empty": (lambda _: b"", "it is empty"),
    "a git-lfs pointer": (lambda _: POINTER, "git-lfs pointer"),
    "an error page": (lambda _: b"<html>404</html>", "web page"),
    "not text": (lambda _: b"\xff\xfe{\x00}\x00", "not valid JSON"),
    "deep": (lambda _: b"[" * 100_000, "not valid JSON"),
}


@pytest.mark.parametrize(
    "file",
    [
        *("model_index.json", "unet/config.json", "text_encoder/config.json", "scheduler/scheduler_config.json"),
        "tokenizer/tokenizer_config.json",
    ],
)
@pytest.mark.parametrize("damage", TEXTS)
def test_damaged_settings_are_named(folder: Path, file: str, damage: str) -> None:
    spoil, named = TEXTS[damage]
    (folder / file).write_bytes(spoil((folder / file).read_bytes()))
    with pytest.raises(ArtifactFormatError, match=named) as refused:
        load_model(ModelConfig(path=str(folder)))
    assert file in refused.value.message
    if file == "model_index.json":
        with pytest.raises(ArtifactFormatError, match=named):
            model_hash(folder)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_a_missing_part_is_named(folder: Path, part: str) -> None:
    shutil.rmtree(folder / part)
    with pytest.raises(ArtifactFormatError, match=f"/{part}"):
        load_model(ModelConfig(path=str(folder)))


@pytest.mark.parametrize(
    ("file", "settings", "named"),
    [
        ("unet/config.json", {"block_out_channels": [16, 64]}, "unet: it cannot be loaded"),
        ("unet/config.json", {"layers_per_block": 2}, "unet: it cannot be loaded"),
        ("text_encoder/config.json", {"num_hidden_layers": 2}, "text_encoder: its weights lack"),
        ("text_encoder/config.json", {"vocab_size": 7}, "text_encoder: it cannot be loaded"),
        ("vae/config.json", {"block_out_channels": "many"}, "vae: it cannot be loaded"),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": "many"}, "it cannot be loaded"),
    ],
)
def test_settings_that_the_weights_do_not_fit_are_known_errors(
    folder: Path, file: str, settings: dict[str, Any], named: str
) -> None:
    change(folder / file, **settings)
    with pytest.raises(ArtifactFormatError, match=named):
        load_model(ModelConfig(path=str(folder)))


def test_a_device_that_is_not_there_is_a_known_error(tiny_model_dir: Path) -> None:
    for device in ("cuda:7", "gpu"):
        with pytest.raises(SafetyError, match=r"model\.device: this process cannot use"):
            load_model(ModelConfig(path=str(tiny_model_dir), device=device))
