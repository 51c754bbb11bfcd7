"""The generalised symmetric eigenproblem, A v = h B v with v^T B v = 1, on whatever device the matrices are."""

from __future__ import annotations

import torch
from scipy.linalg import eigh
from torch import Tensor


def generalised_eigh(part: Tensor, whole: Tensor, count: int | None = None) -> tuple[Tensor, Tensor]:
    """Return the eigenvalues h, ascending, and the eigenvectors as columns [K, count].

    LAPACK solves it on a CPU, where a few eigenvectors cost less than all; elsewhere it is turned into an ordinary one.

    Args:
        part: A, symmetric, fp64 [K, K].
        whole: B, symmetric and positive definite, fp64 [K, K].
        count: How many of the largest are wanted; None: all.
    """
    if part.device.type != "cpu":
        values, vectors = whitened_eigh(part, whole)
        return (values, vectors) if count is None else (values[-count:], vectors[:, -count:])
    last = len(part) - 1
    wanted = None if count is None else [last - count + 1, last]
    values, vectors = (torch.from_numpy(found) for found in eigh(part.numpy(), whole.numpy(), subset_by_index=wanted))
    return values, vectors


def whitened_eigh(part: Tensor, whole: Tensor) -> tuple[Tensor, Tensor]:
    """Return all eigenvalues and eigenvectors by Cholesky: with B = L L^T, L^-1 A L^-T has the same eigenvalues."""
    root = torch.linalg.cholesky(whole)
    half = torch.linalg.solve_triangular(root, part, upper=False)
    values, vectors = torch.linalg.eigh(torch.linalg.solve_triangular(root, half.mT, upper=False))
    turned: Tensor = torch.linalg.solve_triangular(root.mT, vectors, upper=True)
    return values, turned
