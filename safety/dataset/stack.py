"""Rows of one shape that lie in several memory-mapped files, gathered as fp32 where they are used.

A training set is larger than what a step reads of it. So nothing is copied when sets are divided and combined: the
operating system pages in what is gathered, once for all processes of a machine.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor


class Stack:
    """N rows [N, ...] of several tensors, each a number of rows in whatever floating-point type it is stored in."""

    def __init__(self, parts: Sequence[Tensor], places: Sequence[int] | None = None) -> None:
        """Take rows of ``parts``, at least one of them, all of one row shape.

        Args:
            parts: Tensors [n, ...].
            places: The rows' numbers in the parts laid end to end, in the stack's order; None: all of them.
        """
        if not parts or len({part.shape[1:] for part in parts}) != 1:
            raise ValueError("a stack's tensors have one shape of rows")
        self.parts = tuple(parts)
        self._ends = list(accumulate(len(part) for part in parts))
        self.places = tuple(range(self._ends[-1]) if places is None else places)

    def __len__(self) -> int:
        """Return N."""
        return len(self.places)

    @property
    def shape(self) -> torch.Size:
        """Return [N, ...]."""
        return torch.Size((len(self), *self.parts[0].shape[1:]))

    def __getitem__(self, rows: int | Sequence[int]) -> Tensor:
        """Return one row, or a copy of several as [len(rows), ...], in fp32."""
        if isinstance(rows, int):
            return self._row(rows).float()
        found = torch.empty((len(rows), *self.shape[1:]))
        for index, row in enumerate(rows):
            found[index] = self._row(row)
        return found

    def _row(self, row: int) -> Tensor:
        place = self.places[row]
        part = bisect_right(self._ends, place)
        return self.parts[part][place - self._ends[part]]

    def take(self, rows: Sequence[int]) -> Stack:
        """Return some rows as a stack, without copying them."""
        return Stack(self.parts, [self.places[row] for row in rows])


Rows = Tensor | Stack
"""Rows in memory, fp32 [N, ...], or in files."""


def take(rows: Rows, chosen: Sequence[int]) -> Rows:
    """Return the chosen rows; of a stack without copying."""
    return rows.take(chosen) if isinstance(rows, Stack) else rows[list(chosen)]


def join(several: Sequence[Rows]) -> Rows:
    """Return the rows of several, one after another; of stacks without copying."""
    tensors = [rows for rows in several if isinstance(rows, Tensor)]
    if len(tensors) == len(several):
        return torch.cat(tensors)
    stacks = [Stack([rows]) if isinstance(rows, Tensor) else rows for rows in several]
    starts = accumulate((sum(map(len, stack.parts)) for stack in stacks[:-1]), initial=0)
    places = [start + place for start, stack in zip(starts, stacks, strict=True) for place in stack.places]
    return Stack([part for stack in stacks for part in stack.parts], places)
