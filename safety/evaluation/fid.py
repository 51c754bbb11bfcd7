"""The Fréchet distance between two sets of image features, in double precision.

Heusel et al. 2017 (arXiv:1706.08500): |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)). The value depends on the
features and grows as samples become fewer, so a figure is only comparable with one of the same features and count.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from safety.base import Config
from safety.evaluation.moments import Moments, moments_of

Array = NDArray[np.float64]


class FrechetResult(Config):
    """A Fréchet distance with its features, reference and counts."""

    value: float
    features: str
    reference: str
    """Description of the reference images."""
    dimensions: int
    n: int
    n_reference: int

    @property
    def note(self) -> str:
        """Return a warning when a covariance has fewer samples than dimensions, else an empty string."""
        fewest = min(self.n, self.n_reference)
        if fewest > self.dimensions:
            return ""
        return (
            f"{fewest} images for {self.dimensions} feature dimensions: the covariance is singular and the distance "
            "mostly bias; compare it only with the same counts"
        )


def frechet(images: Tensor, reference: Moments) -> FrechetResult:
    """Return the distance of features [N, D] from reference moments of the same features.

    Raises:
        EmptyDatasetError: There are fewer than two images, so no covariance.
    """
    own = moments_of(images, reference.features, "images")
    return FrechetResult(
        value=gaussian_frechet(own.mean, own.covariance, reference.mean, reference.covariance),
        features=reference.features,
        reference=reference.images,
        dimensions=int(images.shape[1]),
        n=own.n,
        n_reference=reference.n,
    )


def gaussian_frechet(mean: Array, covariance: Array, other_mean: Array, other_covariance: Array) -> float:
    """Return the squared 2-Wasserstein distance between two Gaussians (means [D], covariances [D, D])."""
    root = _root(covariance)
    # (C1 C2)^(1/2) has the trace of (C1^(1/2) C2 C1^(1/2))^(1/2), which is symmetric: no complex round-off.
    shared = np.sqrt(np.clip(np.linalg.eigvalsh(root @ other_covariance @ root), 0.0, None)).sum()
    apart = float(np.sum((mean - other_mean) ** 2))
    return max(0.0, apart + float(np.trace(covariance) + np.trace(other_covariance) - 2.0 * shared))


def _root(covariance: Array) -> Array:
    """Return the symmetric square root of a positive semidefinite matrix."""
    values, vectors = np.linalg.eigh(covariance)
    root: Array = (vectors * np.sqrt(np.clip(values, 0.0, None))) @ vectors.T
    return root
