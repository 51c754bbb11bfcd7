"""``python -m jobs.convert``: pickled folders and files become safetensors, and what is more than tensors is refused."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from jobs.convert.conversion import convert
from jobs.convert.plan import plan
from safety.errors import ArtifactFormatError, ConfigError, SafetyError
from safety.families import ModelConfig, load_model
from safety.families.pickled import read_pickled, write_tensors
from tests.support.original_layout import original

pytestmark = pytest.mark.slow  # each conversion starts a process that imports torch


class Marker:
    """Leaves a file when it is unpickled unrestricted."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture
def pickled(tiny_model_dir: Path, tmp_path: Path) -> Path:
    """Return a folder as stock diffusers once saved it, with pickles alone; the UNet in shards."""
    folder = Path(shutil.copytree(tiny_model_dir, tmp_path / "pickled"))
    for part, (stem, old) in {
        "vae": ("diffusion_pytorch_model",) * 2,
        "text_encoder": ("model", "pytorch_model"),
    }.items():
        file = folder / part / f"{stem}.safetensors"
        torch.save(load_file(file), folder / part / f"{old}.bin")
        file.unlink()
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    names, shards = sorted(weights), {}
    for number, own in enumerate((names[::2], names[1::2]), start=1):
        shard = f"diffusion_pytorch_model-0000{number}-of-00002.bin"
        torch.save({name: weights[name] for name in own}, folder / "unet" / shard)
        shards |= dict.fromkeys(own, shard)
    index = {"metadata": {"total_size": 1}, "weight_map": shards}
    (folder / "unet" / "diffusion_pytorch_model.bin.index.json").write_text(json.dumps(index))
    file.unlink()
    return folder


def test_a_pickled_folder_is_refused_and_loads_after_the_conversion(
    pickled: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    (pickled / "unet" / "diffusion_pytorch_model.fp16.bin").write_bytes(b"another variant")
    with pytest.raises(ArtifactFormatError, match=r"pickled.*jobs\.convert"):
        load_model(ModelConfig(path=str(pickled)))
    (pickled / "unet" / "diffusion_pytorch_model.fp16.bin").unlink()
    output = tmp_path / "converted"
    assert convert(pickled, output) == output
    (tmp_path / "ordinary").mkdir()
    assert output.stat().st_mode == (tmp_path / "ordinary").stat().st_mode, "workers of another user read it"
    assert not [
        path for path in output.rglob("*") if path.is_file() and path.suffix not in (".json", ".txt", ".safetensors")
    ]
    found, expected = (load_model(ModelConfig(path=str(path))).pipeline for path in (output, tiny_model_dir))  # type: ignore[attr-defined]
    for part in ("unet", "vae", "text_encoder"):
        assert same(getattr(found, part), getattr(expected, part)), part
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_checkpoint_as_trainers_save_it_becomes_a_single_file(tiny_model_dir: Path, tmp_path: Path) -> None:
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(tiny_model_dir, safety_checker=None)
    weights = {name: tensor.contiguous() for name, tensor in original(pipeline, "1").items()}
    torch.save({"epoch": 3, "global_step": 9, "state_dict": {**weights, "epoch": 3}}, tmp_path / "v1.ckpt")
    assert convert(tmp_path / "v1.ckpt", tmp_path / "out") == tmp_path / "out" / "v1.safetensors"
    config = ModelConfig(
        path=str(tmp_path / "out" / "v1.safetensors"), settings=str(tiny_model_dir), cache=tmp_path / "cache"
    )
    assert same(load_model(config).denoiser, pipeline.unet)


def test_what_is_more_than_tensors_is_refused_and_never_runs(pickled: Path, tmp_path: Path) -> None:
    mark = tmp_path / "it-ran"
    torch.save({"weight": torch.ones(2), "hook": Marker(mark)}, pickled / "vae" / "diffusion_pytorch_model.bin")
    command = [sys.executable, "-m", "jobs.convert", "--model", pickled, "--output", tmp_path / "out"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 2
    said = " ".join(ended.stdout.split())
    assert "it holds more than tensors" in said
    assert "mkdir" in said
    assert "weights_only" not in said, "torch's advice to read it unrestricted is not passed on"
    assert not mark.exists()
    assert not (tmp_path / "out").exists()


def test_a_file_that_needs_more_memory_than_its_size_explains_is_stopped(tmp_path: Path) -> None:
    """A pickle of a few bytes whose tensor is one number, repeated over six gibibytes."""
    file = tmp_path / "bomb.bin"
    torch.save({"weight": torch.zeros(1).expand(1, 6 * 2**28)}, file)
    assert file.stat().st_size < 10_000
    with pytest.raises(ArtifactFormatError, match="may take 2.0 GiB|memory") as refused:
        convert(file, tmp_path / "out")
    assert "--memory-gib" in refused.value.fix


BROKEN = {
    "cut": (lambda data: data[: len(data) // 2], "damaged"),
    "empty": (lambda _: b"", "it is empty"),
    "a pointer": (lambda _: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git-lfs pointer"),
    "a page": (lambda _: b"<html>404</html>", "web page"),
    "noise": (lambda _: b"\xff" * 99, "no file of torch"),
    "another pickle": (lambda _: pickle.dumps([1, 2]), "damaged, or no file of torch|more than tensors|holds a list"),
    "another archive": (lambda _: zipped(), "damaged, or no file of torch"),
}


def zipped() -> bytes:
    import io

    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("x", "y")
    return stream.getvalue()


@pytest.mark.parametrize("damage", BROKEN)
def test_damaged_files_are_known_errors(tmp_path: Path, damage: str) -> None:
    spoil, named = BROKEN[damage]
    file = tmp_path / "weights.bin"
    torch.save({"weight": torch.ones(99)}, file)
    file.write_bytes(spoil(file.read_bytes()))
    with pytest.raises(ArtifactFormatError, match=named):
        read_pickled(file)


@pytest.mark.parametrize("content", [[1], {"a": 1}, torch.ones(1), {"state_dict": {}}])
def test_a_file_without_named_tensors_is_refused(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "x.bin")
    with pytest.raises(ArtifactFormatError, match="no weights by name|no tensor by name"):
        read_pickled(tmp_path / "x.bin")


def test_tensors_that_share_memory_are_written_each(tmp_path: Path) -> None:
    base = torch.arange(12.0).view(3, 4)
    tensors = {"a": base, "b": base[1], "c": base, "turned": base.T, "alone": torch.ones(2)}
    write_tensors(tensors, tmp_path / "x.safetensors")
    found = load_file(tmp_path / "x.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def test_the_plan_leaves_safetensors_as_they_are_and_takes_one_variant(pickled: Path) -> None:
    text = pickled / "text_encoder"
    shutil.copyfile(text / "pytorch_model.bin", text / "pytorch_model.fp16.bin")
    save_file({"x": torch.ones(1)}, pickled / "vae" / "diffusion_pytorch_model.safetensors")
    found = plan(pickled)
    assert found.convert[text / "pytorch_model.bin"] == "text_encoder/model.safetensors"
    assert text / "pytorch_model.fp16.bin" not in found.convert
    assert pickled / "vae" / "diffusion_pytorch_model.bin" not in found.convert
    assert found.copy[pickled / "vae" / "diffusion_pytorch_model.safetensors"].startswith("vae/")


def test_what_cannot_be_converted_is_a_known_error(tiny_model_dir: Path, pickled: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    (tmp_path / "x.safetensors").touch()
    for model, output, named in (
        (tiny_model_dir, tmp_path / "out", "is pickled"),
        (tmp_path / "absent", tmp_path / "out", "no model in"),
        (tmp_path / "x.safetensors", tmp_path / "out", "is not pickled"),
        (pickled, tmp_path / "full", "is not empty"),
    ):
        with pytest.raises(ConfigError, match=named):
            convert(model, output)
    with pytest.raises(ConfigError, match=r"--output: .*cannot be written"):
        convert(pickled, tmp_path / "x.safetensors" / "out")
    shard = next((pickled / "unet").glob("*-00001-*"))
    index = next((pickled / "unet").glob("*.index.json"))
    index.write_text(index.read_text().replace(shard.name, "../elsewhere.bin"))
    with pytest.raises(SafetyError, match=r"\.\./elsewhere\.bin"):
        convert(pickled, tmp_path / "out")
