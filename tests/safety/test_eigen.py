"""Both solvers of the generalised eigenproblem against its definition."""

from __future__ import annotations

import pytest
import torch

from safety.eigen import generalised_eigh, whitened_eigh


@pytest.mark.parametrize("solve", [generalised_eigh, whitened_eigh])
def test_a_solution_meets_the_definition(solve: object) -> None:
    draw = torch.Generator().manual_seed(0)
    left, right = torch.randn(2, 9, 7, generator=draw, dtype=torch.float64)
    part, whole = left.T @ left, left.T @ left + right.T @ right
    values, vectors = solve(part, whole)  # type: ignore[operator]
    torch.testing.assert_close(part @ vectors, (whole @ vectors) * values)
    torch.testing.assert_close(vectors.T @ whole @ vectors, torch.eye(7, dtype=torch.float64))
    assert (values[1:] >= values[:-1]).all()


def test_the_largest_are_the_last_of_all() -> None:
    draw = torch.Generator().manual_seed(1)
    left, right = torch.randn(2, 9, 7, generator=draw, dtype=torch.float64)
    part, whole = left.T @ left, left.T @ left + right.T @ right
    values, vectors = generalised_eigh(part, whole)
    few, top = generalised_eigh(part, whole, 3)
    torch.testing.assert_close(few, values[-3:])
    # An eigenvector's sign is free.
    torch.testing.assert_close(top @ top.T, vectors[:, -3:] @ vectors[:, -3:].T)
