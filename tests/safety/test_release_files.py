"""What a release folder must be before its adapter touches a model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from safety.errors import ArtifactFormatError, ConfigError
from safety.families import ModelConfig, ModelFamily, load_model
from safety.lora.files import LORA_FILE, save_lora
from safety.lora.weights import LoraLayer, LoraWeights
from safety.release import RELEASE_FILE, BaseModelIdentity, ReleaseInfo, file_hash, load_release, model_hash

LAYER = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"


@pytest.fixture(scope="module")
def model(tiny_model_dir: Path) -> ModelFamily:
    return load_model(ModelConfig(path=str(tiny_model_dir)))


def adapter(model: ModelFamily, value: float = 1.0) -> LoraWeights:
    outputs, inputs = model.denoiser.get_submodule(LAYER).weight.shape  # type: ignore[union-attr, misc]
    return LoraWeights({LAYER: LoraLayer(torch.full((1, inputs), value), torch.full((outputs, 1), value))})  # type: ignore[arg-type]


@pytest.fixture
def folder(model: ModelFamily, tiny_model_dir: Path, tmp_path: Path) -> Path:
    save_lora(adapter(model), tmp_path, metadata={})
    info = ReleaseInfo(
        name="tiny",
        base=BaseModelIdentity(id="tiny", family="stable-diffusion", sha256=model_hash(tiny_model_dir)),
        adapter_sha256=file_hash(tmp_path / LORA_FILE),
        judge=None,
        provenance={},
    )
    (tmp_path / RELEASE_FILE).write_text(info.model_dump_json())
    return tmp_path


def test_a_release_loads_with_what_it_says_of_itself(folder: Path, model: ModelFamily, tiny_model_dir: Path) -> None:
    info, weights = load_release(folder, model, tiny_model_dir)
    assert info.name == "tiny"
    assert torch.equal(weights[LAYER].delta(), adapter(model)[LAYER].delta())


def test_another_adapter_in_its_place_is_refused(folder: Path, model: ModelFamily, tiny_model_dir: Path) -> None:
    save_lora(adapter(model, 2.0), folder, metadata={})
    with pytest.raises(ArtifactFormatError, match=f"{LORA_FILE} is not the one"):
        load_release(folder, model, tiny_model_dir)
    (folder / LORA_FILE).unlink()
    with pytest.raises(ArtifactFormatError, match=f"{LORA_FILE} is not the one"):
        load_release(folder, model, tiny_model_dir)


def test_another_base_model_is_refused(
    folder: Path, model: ModelFamily, tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = tmp_path_factory.mktemp("other") / "model"
    shutil.copytree(tiny_model_dir, other)
    weights = other / "unet" / "diffusion_pytorch_model.safetensors"
    damaged = bytearray(weights.read_bytes())
    damaged[-1] ^= 1
    weights.write_bytes(damaged)
    with pytest.raises(ArtifactFormatError, match=r"model\.path: the release 'tiny' is for the base 'tiny'"):
        load_release(folder, model, other)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (None, "no release.json"),
        ({"adapter_sha256": "../../etc/passwd"}, "adapter_sha256"),
        ({"code": "import os"}, "code"),
        ({"base": {"id": "x"}}, "base"),
    ],
)
def test_a_release_file_of_another_form_is_refused(
    folder: Path, model: ModelFamily, tiny_model_dir: Path, change: dict[str, object] | None, match: str
) -> None:
    path = folder / RELEASE_FILE
    if change is None:
        path.unlink()
    else:
        path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ArtifactFormatError, match=match):
        load_release(folder, model, tiny_model_dir)


def test_a_models_hash_is_that_of_the_files_it_draws_with(tiny_model_dir: Path, tmp_path: Path) -> None:
    copy = tmp_path / "model"
    shutil.copytree(tiny_model_dir, copy)
    assert model_hash(copy) == model_hash(tiny_model_dir)
    (copy / "README.md").write_text("a card")
    (copy / "judge").mkdir()
    (copy / "judge" / "model.safetensors").write_bytes(b"not of the pipeline")
    assert model_hash(copy) == model_hash(tiny_model_dir)
    (copy / "scheduler" / "scheduler_config.json").write_text("{}")
    assert model_hash(copy) != model_hash(tiny_model_dir)
    with pytest.raises(ConfigError, match=r"model_index\.json"):
        model_hash(tmp_path)
