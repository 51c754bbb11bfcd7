"""The original layout's names at the real models' sizes: diffusers' own reader finds every tensor under its name again."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint

from safety.exports.original_layout import unet_name, vae_tensor
from tests.support.real_unets import UNETS


@pytest.mark.parametrize("model", UNETS)
def test_every_tensor_of_a_real_unet_is_read_back_under_its_own_name(model: str) -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel(**UNETS[model])
    tensors = unet.state_dict()
    named = {unet_name(name, unet.config): tensor for name, tensor in tensors.items()}
    assert len(named) == len(tensors)
    found: dict[str, Any] = convert_ldm_unet_checkpoint(named, dict(unet.config))
    assert found.keys() == tensors.keys()
    assert all(found[name] is tensor for name, tensor in tensors.items())


def test_every_tensor_of_a_real_vae_is_read_back_under_its_own_name() -> None:
    with torch.device("meta"):
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
        )
    tensors = vae.state_dict()
    named = dict(vae_tensor(name, tensor, vae.config) for name, tensor in tensors.items())
    assert len(named) == len(tensors)
    found: dict[str, Any] = convert_ldm_vae_checkpoint(named, dict(vae.config))
    assert {name: tensor.shape for name, tensor in found.items()} == {
        name: tensor.shape for name, tensor in tensors.items()
    }
