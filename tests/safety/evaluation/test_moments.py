"""Moments as FID's reference: as good as the images they are of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from safety.errors import ArtifactFormatError
from safety.evaluation.fid import frechet
from safety.evaluation.moments import load_moments, moments_of, real_moments, save_moments
from safety.features.extractor import feature_extractors


def rows(seed: int, count: int = 40) -> torch.Tensor:
    return torch.randn(count, 6, generator=torch.Generator().manual_seed(seed))


def test_written_moments_read_back_and_give_the_distance_of_their_images(tmp_path: Path) -> None:
    path = tmp_path / "fid" / "benign.safetensors"
    save_moments(moments_of(rows(1), "pixels", "forty images"), path)
    again = load_moments(path)
    assert (again.n, again.features, again.images) == (40, "pixels", "forty images")
    np.testing.assert_allclose(again.mean, rows(1).double().mean(0).numpy(), atol=1e-6)
    np.testing.assert_allclose(again.covariance, torch.cov(rows(1).double().T).numpy(), atol=1e-6)
    expected = frechet(rows(2), moments_of(rows(1), "pixels", "forty images"))
    found = frechet(rows(2), again)
    assert found.value == pytest.approx(expected.value, rel=1e-4)
    assert found.model_dump(exclude={"value"}) == expected.model_dump(exclude={"value"})


def test_equal_moments_are_written_as_equal_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_moments(moments_of(rows(1), "pixels", "forty images"), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "odd.safetensors").write_bytes(b"not tensors")
    with pytest.raises(ArtifactFormatError, match="holds no moments"):
        load_moments(tmp_path / "odd.safetensors")


def test_the_zoo_has_moments_for_its_own_features_and_for_no_others() -> None:
    found = real_moments(feature_extractors["emoji-clip"]().name)
    assert found is not None
    assert found.n > 20 * len(found.mean)
    assert np.linalg.eigvalsh(found.covariance).min() > 0
    assert real_moments("other features") is None
