"""The encoder set in closed form, against a plain principal component analysis."""

from __future__ import annotations

import pytest
import torch

from safety.emoji.build.autoencoder import AutoencoderConfig, build_autoencoder, set_encoder
from safety.emoji.build.pool import ScenePool


@pytest.mark.parametrize("whitening", [0.0, 0.5, 1.0])
def test_the_encoder_is_affine_and_its_latents_have_a_mean_variance_of_one(pool: ScenePool, whitening: float) -> None:
    torch.manual_seed(0)
    model = build_autoencoder(AutoencoderConfig(latent_channels=8)).eval()
    images = pool.images(range(100))
    set_encoder(model, images, whitening)
    first, second = images[:50], images[50:]
    with torch.no_grad():
        ends = model.encode(images).latent_dist.mode()
        between = model.encode(0.3 * first + 0.7 * second).latent_dist.mode()
    expected = 0.3 * ends[:50] + 0.7 * ends[50:]
    assert (between - expected).abs().max() < 0.01 * ends.abs().max()
    rows = ends.permute(0, 2, 3, 1).reshape(-1, 8)
    assert abs(rows.var(dim=0).mean().item() - 1.0) < 0.1


def test_a_patchs_latents_depend_on_its_own_pixels_alone(pool: ScenePool) -> None:
    torch.manual_seed(0)
    model = build_autoencoder(AutoencoderConfig(latent_channels=8)).eval()
    images = pool.images(range(60))
    set_encoder(model, images)
    changed = images[:1].clone()
    changed[:, :, 16:24, 40:48] = torch.rand(1, 3, 8, 8)
    with torch.no_grad():
        before, after = (model.encode(x).latent_dist.mode()[0] for x in (images[:1], changed))
    moved = (before - after).abs().amax(dim=0) > 0.02
    assert moved[2, 5]
    assert int(moved.sum()) == 1


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
