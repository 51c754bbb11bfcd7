"""Random draws that do not depend on when or where they are made.

Every draw in the project is a function of (run seed, row id, draw index), so batch order, worker count and
restarts cannot change a result.
"""

from __future__ import annotations

import hashlib
import random

import torch
from torch import Tensor


def derive_seed(seed: int, row_id: str, draw: int | str = 0) -> int:
    """Return a 63-bit seed for draw number (or name) ``draw`` of row ``row_id`` under the run seed."""
    digest = hashlib.blake2b(f"{seed}\x1f{row_id}\x1f{draw}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def rng(seed: int, row_id: str, draw: int | str = 0) -> random.Random:
    """Return Python's generator for one draw (choices, shuffles)."""
    return random.Random(derive_seed(seed, row_id, draw))


def torch_generator(seed: int, row_id: str, draw: int | str = 0) -> torch.Generator:
    """Return a CPU generator for one draw; CPU so that the device cannot change the numbers."""
    return torch.Generator().manual_seed(derive_seed(seed, row_id, draw))


def normal(shape: tuple[int, ...], seed: int, row_id: str, draw: int | str = 0) -> Tensor:
    """Return fp32 standard normal noise of ``shape`` for one draw, on the CPU."""
    return torch.randn(shape, generator=torch_generator(seed, row_id, draw))


def uniform(seed: int, row_id: str, draw: int | str = 0) -> float:
    """Return one uniform number in [0, 1)."""
    return derive_seed(seed, row_id, draw) / 2.0**63
