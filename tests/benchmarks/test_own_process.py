"""A peak in a process of its own: of what it takes itself, whatever its parent holds."""

from __future__ import annotations

import os

import pytest

from benchmarks.own_process import in_own_process, peak_bytes

MIB = 2**20


def peak_of(size: int) -> int:
    """Return the bytes by which writing ``size`` bytes raises this process's peak."""
    before = peak_bytes()
    block = bytearray(b"x") * size
    del block
    return peak_bytes() - before


def end_at_once() -> None:
    os._exit(7)


def test_the_peak_is_of_the_process_itself() -> None:
    held = bytearray(b"x") * (600 * MIB)
    found = in_own_process(peak_of, 100 * MIB)
    assert len(held) > 5 * found, "the parent is far larger"
    assert found == pytest.approx(100 * MIB, rel=0.05)


def test_a_process_that_dies_is_an_error_that_says_how() -> None:
    with pytest.raises(RuntimeError, match="end_at_once ended with exit code 7"):
        in_own_process(end_at_once)
