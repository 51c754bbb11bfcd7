"""A model's own files name files of its folder alone: nothing outside it is hashed or loaded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from safety.errors import ArtifactFormatError
from safety.families import ModelConfig
from safety.families.family import model_folder
from safety.families.model_index import model_parts
from safety.release import model_hash

OUTSIDE = ["../secret", "unet/../../secret", "/etc", "..", ".", "", "a/b", "a\\b", ".hidden", "a\nb"]


@pytest.fixture
def model(tiny_model_dir: Path, tmp_path: Path) -> Path:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "key.txt").write_text("not the model's")
    return Path(shutil.copytree(tiny_model_dir, tmp_path / "model"))


def change(file: Path, **entries: Any) -> None:
    document = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps({**document, **entries}))


@pytest.mark.parametrize("use", [model_hash, model_parts, lambda folder: model_folder(ModelConfig(path=str(folder)))])
@pytest.mark.parametrize("name", OUTSIDE)
def test_an_index_names_plain_parts_only(model: Path, name: str, use: Callable[[Path], object]) -> None:
    change(model / "model_index.json", **{name: ["diffusers", "UNet2DConditionModel"]})
    with pytest.raises(ArtifactFormatError, match=r"model\.path: .*model_index\.json: it names the file"):
        use(model)


@pytest.mark.parametrize("name", [*OUTSIDE, 7, None, ["a"]])
@pytest.mark.parametrize("file", ["unet/diffusion_pytorch_model.safetensors.index.json", "unet/x.index.fp16.json"])
def test_shards_have_plain_names(model: Path, file: str, name: Any) -> None:
    change(model / file, weight_map={"conv_in.weight": name})
    with pytest.raises(ArtifactFormatError, match=r"index\..*json: it names the file"):
        model_hash(model)


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_tokenizer_s_versions_have_plain_names(model: Path, name: str) -> None:
    change(model / "tokenizer" / "tokenizer_config.json", fast_tokenizer_files=["tokenizer.json", name])
    with pytest.raises(ArtifactFormatError, match=r"tokenizer_config\.json: it names the file"):
        model_hash(model)


def test_usual_names_pass(model: Path) -> None:
    change(model / "unet" / "a.safetensors.index.json", weight_map={"a": "a-00001-of-00002.fp16.safetensors"})
    # As in Stable Diffusion 1.5; transformers does not follow it.
    change(model / "tokenizer" / "tokenizer_config.json", special_tokens_map_file="./special_tokens_map.json")
    change(model / "model_index.json", unet_2=["diffusers", "UNet2DConditionModel"], force_zeros=True)
    assert "unet" in model_parts(model)


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b"\xff\xfe{}", "{}".encode("utf-16"), b"[" * 100_000], ids=range(6))
def test_a_damaged_index_is_a_known_error(model: Path, data: bytes) -> None:
    (model / "model_index.json").write_bytes(data)
    with pytest.raises(ArtifactFormatError, match=r"model_index\.json: it is (not valid JSON|no JSON object|empty)"):
        model_hash(model)
