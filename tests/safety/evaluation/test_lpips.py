"""LPIPS is that of the package ``lpips`` on the same weights; other files are refused.

The package needs torchvision, of which there is no CPU build. So its figures on weights and images in closed form are written
down here: by lpips 0.1.4, with torchvision 0.29.1's Python files and without its operators. Where torchvision is installed, the
package itself is asked as well.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from safety.errors import ArtifactFormatError
from safety.evaluation.lpips import load_lpips, lpips_name
from tests.support.drawn_weights import drawn, wave_images

ALEX = ((1, 0, 3, 64, 11), (2, 3, 64, 192, 5), (3, 6, 192, 384, 3), (4, 8, 384, 256, 3), (5, 10, 256, 256, 3))
"""Slice, number in torchvision's network, channels in and out, and kernel of each convolution."""
VGG_SIZES = (3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
VGG_NUMBERS = {1: (0, 2), 2: (5, 7), 3: (10, 12, 14), 4: (17, 19, 21), 5: (24, 26, 28)}
VGG_PLACES = [(place, number) for place, numbers in VGG_NUMBERS.items() for number in numbers]
VGG = tuple((*place, *sizes, 3) for place, sizes in zip(VGG_PLACES, pairwise(VGG_SIZES), strict=True))
BY_LPIPS = {"alex": (0.245557, 0.265716, 0.242953), "vgg": (0.193223, 0.216474, 0.234022)}


def weights(network: str) -> dict[str, Tensor]:
    layers = {"alex": ALEX, "vgg": VGG}[network]
    shapes, last = {}, {}
    for place, number, inside, outside, kernel in layers:
        shapes[f"net.slice{place}.{number}.weight"] = torch.zeros(outside, inside, kernel, kernel)
        shapes[f"net.slice{place}.{number}.bias"] = torch.zeros(outside)
        last[place] = outside
    heads = {f"lin{place - 1}.model.1.weight": torch.zeros(1, outside, 1, 1) for place, outside in last.items()}
    # The package's heads weigh squares, and are positive.
    return drawn(shapes) | {name: value.abs() for name, value in drawn(heads).items()}


@pytest.mark.parametrize("network", ["alex", "vgg"])
def test_distances_are_those_of_the_package(network: str, tmp_path: Path) -> None:
    path = tmp_path / "lpips.safetensors"
    save_file(weights(network), path)
    images = wave_images(6, 96, 130)
    lpips = load_lpips(path)
    found = lpips.distances(images[:3], images[3:])
    assert found.tolist() == pytest.approx(BY_LPIPS[network], abs=1e-5)
    assert lpips.distances(images, images).tolist() == [0.0] * 6
    assert lpips_name(path) == lpips.name
    assert lpips.name.startswith(f"lpips-0.1/{network}@")


def test_distances_are_those_of_an_installed_package(tmp_path: Path) -> None:
    pytest.importorskip("torchvision", reason="torchvision is not installed: there is no CPU build of it")
    package = pytest.importorskip("lpips", reason="lpips is not installed")
    path, tensors = tmp_path / "lpips.safetensors", weights("alex")
    save_file(tensors, path)
    with patch("torch.hub.load_state_dict_from_url", side_effect=AssertionError("nothing is fetched")):
        original = package.LPIPS(net="alex", pnet_rand=True, verbose=False)
    original.load_state_dict(tensors, strict=False)
    first, second = wave_images(4, 64, 80).split(2)
    with torch.no_grad():
        expected = original(first / 127.5 - 1.0, second / 127.5 - 1.0).flatten()
    assert torch.allclose(load_lpips(path).distances(first, second), expected, atol=1e-5)


def test_other_files_are_refused(tmp_path: Path) -> None:
    path, tensors = tmp_path / "lpips.safetensors", weights("alex")
    for written, said in (
        ({name: value for name, value in tensors.items() if name != "lin2.model.1.weight"}, "lacks 'lin2"),
        ({"net.slice1.0.weight": torch.zeros(64, 3, 7, 7)}, "neither AlexNet's nor VGG's"),
        ({"odd": torch.zeros(1)}, "neither AlexNet's nor VGG's"),
        # SqueezeNet's first kernel is that of VGG.
        (weights("vgg") | {"lin5.model.1.weight": torch.zeros(1, 8, 1, 1)}, "neither AlexNet's nor VGG's"),
    ):
        save_file(written, path)
        with pytest.raises(ArtifactFormatError, match=f"LPIPS's weights .*{said}") as refused:
            load_lpips(path)
        assert refused.value.field == "evaluate.lpips"
    torch.save(tensors, path)
    with pytest.raises(ArtifactFormatError, match="is no safetensors file") as refused:
        load_lpips(path)
    assert "write it once" in refused.value.fix
