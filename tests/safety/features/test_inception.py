"""Inception features are those of pytorch-fid's own network on the same weights; other files are refused.

pytorch-fid needs torchvision, of which there is no CPU build. So its figures on weights and images in closed form are written
down here: by pytorch-fid 0.3.0, with torchvision 0.29.1's Python files and without its operators. Where torchvision is
installed, the two networks are compared as well.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from safety.errors import ArtifactFormatError, ConfigError
from safety.features.extractor import TextFeatureExtractor, load_features
from safety.features.inception_net import InceptionNet
from tests.support.drawn_weights import drawn, wave_images

BY_PYTORCH_FID = (
    (0.0, 0.0, 0.1057, 0.00242, 0.02122, 0.0, 0.15416, 0.00011),
    (0.0, 0.0, 0.10827, 0.00199, 0.01841, 0.0, 0.15446, 0.00044),
)
"""Every 256th feature of each of the two images."""
SUMS, NORMS = (109.1995, 114.6939), (4.6740, 4.9841)
"""Of all 2,048."""
CLASSIFIER = {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    return drawn(InceptionNet().state_dict())


@pytest.fixture(scope="module")
def file(tensors: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("inception") / "inception.safetensors"
    # As the published file: with the classifier, and without training's counters.
    save_file({k: v for k, v in tensors.items() if not k.endswith("num_batches_tracked")} | CLASSIFIER, path)
    return path


def test_features_are_those_of_pytorch_fid(file: Path) -> None:
    features = load_features(f"inception@{file}")
    found = features.images(wave_images(2, 200, 260))
    assert found.shape == (2, features.dimensions) == (2, 2048)
    assert found.dtype == torch.float32
    assert torch.allclose(found[:, ::256], torch.tensor(BY_PYTORCH_FID), atol=1e-4)
    assert found.sum(dim=1).tolist() == pytest.approx(SUMS, abs=1e-2)
    assert found.norm(dim=1).tolist() == pytest.approx(NORMS, abs=1e-3)
    assert features.name.startswith("inception-2015/pool-2048@")
    assert not isinstance(features, TextFeatureExtractor)


def test_the_network_is_that_of_an_installed_pytorch_fid(tensors: dict[str, Tensor]) -> None:
    pytest.importorskip("torchvision", reason="torchvision is not installed: there is no CPU build of it")
    package = importlib.import_module("pytorch_fid.inception")
    with patch.object(package, "load_state_dict_from_url", return_value=tensors | CLASSIFIER):
        original = package.InceptionV3().eval()
    net = InceptionNet().eval()
    net.load_state_dict(tensors)
    pixels = wave_images(2, 120, 340).float() / 255.0
    with torch.no_grad():
        assert torch.allclose(net(pixels), original(pixels)[0][:, :, 0, 0], atol=1e-4)


def test_no_file_is_named_with_how_to_make_one() -> None:
    with pytest.raises(ConfigError, match="do not say where their weights are") as refused:
        load_features("inception")
    assert refused.value.field == "evaluate.features"
    assert "pytorch-fid's releases" in refused.value.fix


def test_other_files_are_refused(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    small = {name: value for name, value in tensors.items() if name.startswith("Conv2d_1a")}
    path = tmp_path / "weights.safetensors"
    for written, said in (
        (small, "it lacks Conv2d_2a"),
        (small | {"odd": torch.zeros(1)}, "it lacks"),
        ({"Conv2d_1a_3x3.conv.weight": torch.zeros(2, 2)}, "size mismatch"),
    ):
        save_file(written, path)
        with pytest.raises(ArtifactFormatError, match=f"weights of another network .*{said}"):
            load_features(f"inception@{path}")
    torch.save(small, path)
    with pytest.raises(ArtifactFormatError, match="is no safetensors file"):
        load_features(f"inception@{path}")
    with pytest.raises(ArtifactFormatError, match="is no safetensors file"):
        load_features(f"inception@{tmp_path / 'none'}")
