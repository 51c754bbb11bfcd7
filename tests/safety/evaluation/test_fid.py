"""The Fréchet distance against closed forms and scipy's matrix square root."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from safety.errors import EmptyDatasetError
from safety.evaluation.fid import frechet, gaussian_frechet
from safety.evaluation.moments import moments_of


def distance(rows: torch.Tensor, others: torch.Tensor) -> float:
    return frechet(rows, moments_of(others, "f", "others")).value


def test_diagonal_gaussians_have_a_closed_form() -> None:
    draw = np.random.default_rng(0)
    mean, other = draw.normal(size=6), draw.normal(size=6)
    spread, other_spread = draw.uniform(0.1, 3.0, 6), draw.uniform(0.1, 3.0, 6)
    expected = np.sum((mean - other) ** 2) + np.sum((spread - other_spread) ** 2)
    got = gaussian_frechet(mean, np.diag(spread**2), other, np.diag(other_spread**2))
    assert got == pytest.approx(expected, rel=1e-12)


def test_full_covariances_agree_with_scipys_matrix_root() -> None:
    draw = np.random.default_rng(1)
    first, second = (a @ a.T for a in draw.normal(size=(2, 20, 30)))
    mean, other = draw.normal(size=(2, 20))
    root = np.real(sqrtm(first @ second))
    expected = np.sum((mean - other) ** 2) + np.trace(first + second - 2 * root)
    assert gaussian_frechet(mean, first, other, second) == pytest.approx(expected, rel=1e-9)


def test_rotations_leave_it_and_swapping_sides_leaves_it() -> None:
    draw = np.random.default_rng(2)
    rows, others = torch.tensor(draw.normal(size=(60, 8))), torch.tensor(draw.normal(1.0, 2.0, size=(50, 8)))
    turn = torch.tensor(np.linalg.qr(draw.normal(size=(8, 8)))[0])
    plain = distance(rows, others)
    assert distance(rows @ turn, others @ turn) == pytest.approx(plain, rel=1e-10)
    assert distance(others, rows) == pytest.approx(plain, rel=1e-10)


def test_a_set_against_itself_is_zero_even_when_singular() -> None:
    rows = torch.randn(5, 16, generator=torch.Generator().manual_seed(0))
    assert distance(rows, rows) == pytest.approx(0.0, abs=1e-5)


def test_a_shift_in_features_is_its_squared_length() -> None:
    rows = torch.randn(100, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert distance(rows + 3.0, rows) == pytest.approx(36.0, rel=1e-9)


def test_a_result_names_its_reference_and_says_when_samples_are_too_few() -> None:
    rows = torch.randn(30, 16, generator=torch.Generator().manual_seed(0))
    reference = moments_of(rows, "clip/projection-16", "thirty real images")
    assert frechet(rows, reference).note == ""
    found = frechet(rows[:10], reference)
    assert (found.n, found.n_reference, found.dimensions) == (10, 30, 16)
    assert (found.features, found.reference) == ("clip/projection-16", "thirty real images")
    assert found.note.startswith("10 images for 16 feature dimensions")


def test_one_image_has_no_covariance() -> None:
    rows = torch.randn(30, 16, generator=torch.Generator().manual_seed(0))
    with pytest.raises(EmptyDatasetError, match="1 rows of images"):
        frechet(rows[:1], moments_of(rows, "f", "others"))
    with pytest.raises(EmptyDatasetError, match="1 rows of others"):
        moments_of(rows[:1], "f", "others")
