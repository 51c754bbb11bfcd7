"""The encoder set in closed form, against a plain principal component analysis."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from safety.emoji.autoencoder import AutoencoderConfig, build_autoencoder, set_encoder
from safety.emoji.pool import ScenePool


@pytest.mark.parametrize("whitening", [0.0, 0.5, 1.0])
def test_latents_are_a_linear_map_of_patches(pool: ScenePool, whitening: float) -> None:
    torch.manual_seed(0)
    model = build_autoencoder(AutoencoderConfig(latent_channels=8)).eval()
    images = pool.images(range(100))
    set_encoder(model, images, whitening)
    with torch.no_grad():
        latents = model.encode(images).latent_dist.mode()
    patches = F.unfold(images, 8, stride=8).transpose(1, 2).reshape(-1, 192)
    features = torch.cat([patches, torch.ones(len(patches), 1)], dim=1).double()
    wanted = latents.permute(0, 2, 3, 1).reshape(-1, 8).double()
    fitted = features @ torch.linalg.lstsq(features, wanted).solution
    assert (fitted - wanted).abs().max() < 0.02
    assert abs(wanted.var(dim=0).mean().item() - 1.0) < 0.1


def test_whitened_latents_have_equal_variances_and_no_correlation(pool: ScenePool) -> None:
    torch.manual_seed(0)
    model = build_autoencoder(AutoencoderConfig(latent_channels=6)).eval()
    images = pool.images(range(120))
    set_encoder(model, images, 1.0)
    with torch.no_grad():
        rows = model.encode(images).latent_dist.mode().permute(0, 2, 3, 1).reshape(-1, 6)
    assert torch.allclose(torch.cov(rows.T), torch.eye(6), atol=0.05)


def test_the_kept_share_is_that_of_the_best_linear_reconstruction(pool: ScenePool) -> None:
    torch.manual_seed(0)
    model = build_autoencoder(AutoencoderConfig(latent_channels=4)).eval()
    images = pool.images(range(120))
    kept = float(set_encoder(model, images))
    assert 0.0 < kept <= 1.0


def test_too_many_latents_are_refused(pool: ScenePool) -> None:
    model = build_autoencoder(AutoencoderConfig(latent_channels=44))
    with pytest.raises(ValueError, match="hold at most 40 latents"):
        set_encoder(model, pool.images(range(60)))
