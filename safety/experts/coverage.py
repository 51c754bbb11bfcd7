"""The share of a training set's rows that a training sees: fewer than all, where few distinct batches come again."""

from __future__ import annotations

from typing import NamedTuple

from safety.experts.config import ExpertConfig


class Coverage(NamedTuple):
    """Rows that are trained on, out of those that there are."""

    seen: int
    rows: int

    @property
    def share(self) -> float:
        """Return the share that is seen, in [0, 1]."""
        return self.seen / self.rows

    @property
    def text(self) -> str:
        """Return it in words."""
        return f"{self.seen} of {self.rows} preference rows ({100 * self.share:.0f}%)"


def coverage(config: ExpertConfig, pairs: int) -> Coverage:
    """Return how many rows of a training split of so many pairs, two of each, a training visits.

    A schedule visits every row once before any comes again, so the distinct batches alone decide.
    """
    rows = 2 * pairs
    batches = config.steps if config.distinct_batches is None else min(config.steps, config.distinct_batches)
    return Coverage(min(rows, batches * config.rows), rows)
