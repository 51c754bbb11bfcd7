"""Summary of a dataset: counts of kept and rejected rows by category and split, provenance and content hash."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from typing import Any

from pydantic import Field

from safety.base import Config
from safety.dataset.filter import RejectionReason
from safety.dataset.record import Record
from safety.errors import EmptyDatasetError
from safety.judges.judge import JudgeIdentity

BENIGN = "benign"


class SplitCount(Config):
    """The rows of one category (or the benign ones) in one split."""

    category: str
    split: str
    rows: int
    kept: int
    rejected: dict[RejectionReason, int]

    def check(self) -> None:
        """Raise EmptyDatasetError when there are rows and none is kept."""
        if self.rows and not self.kept:
            reasons = ", ".join(f"{reason} {count}" for reason, count in self.rejected.items())
            raise EmptyDatasetError(
                f"none of the {self.rows} {self.split} rows of {self.category!r} is kept ({reasons})",
                field="generate.filter",
                fix=_fix(self.rejected, self.split),
            )


def _fix(rejected: Mapping[RejectionReason, int], split: str) -> str:
    """Return the remedy for a split's most frequent reason."""
    worst = max(rejected, key=lambda reason: rejected[reason])
    if worst in (RejectionReason.REFUSED_PROMPT, RejectionReason.PROMPT_TOO_LONG):
        return "fix the prompts or use another writer"
    if worst in (RejectionReason.COUNTERPART_NOT_SHOWN, RejectionReason.CONTEXT_LOST, RejectionReason.OBJECT_NOT_SHOWN):
        return f"raise generate.counts.{split} or generate.render.steps, or switch that rule of generate.filter off"
    return "check that judge, threshold and taxonomy suit the base model, or raise generate.render.steps"


class DatasetProvenance(Config):
    """Everything that a dataset's rows depend on."""

    model: str
    model_hash: str = Field(description="SHA-256 over the base model's files")
    taxonomy: str
    notice: str | None = Field(description="of the taxonomy, for the card")
    writer_version: str = Field(description="of the prompt writer that the recipe names")
    judge: JudgeIdentity
    seed: int
    recipe: dict[str, Any] = Field(description="the generation's settings that the rows depend on")


class DatasetSummary(Config):
    """The summary of a finished dataset."""

    dataset_hash: str = Field(description="SHA-256 over the rows' content in the order of their ids")
    provenance: DatasetProvenance
    counts: tuple[SplitCount, ...]
    prompts: dict[str, int] = Field(description="accepted prompts by split, the never rendered ones included")

    @property
    def rows(self) -> int:
        """Return the number of rows that were to be rendered or were refused."""
        return sum(count.rows for count in self.counts)

    @property
    def kept(self) -> int:
        """Return the number of kept rows."""
        return sum(count.kept for count in self.counts)


class Tally:
    """Counts records and collects their content hashes."""

    def __init__(self) -> None:
        self._kept: Counter[tuple[str, str]] = Counter()
        self._rejected: dict[tuple[str, str], Counter[RejectionReason]] = {}
        self._hashes: dict[str, str] = {}

    def add(self, record: Record) -> None:
        """Count one record; raise RuntimeError when its id was counted before."""
        if record.row.row_id in self._hashes:
            raise RuntimeError(f"the row {record.row.row_id} occurs twice")
        self._hashes[record.row.row_id] = record.content_hash()
        place = record.group, record.row.split
        rejected = self._rejected.setdefault(place, Counter())
        if record.reason is None:
            self._kept[place] += 1
        else:
            rejected[record.reason] += 1

    def counts(self) -> tuple[SplitCount, ...]:
        """Return the counts in order of first appearance."""
        return tuple(
            SplitCount(
                category=place[0],
                split=place[1],
                rows=self._kept[place] + rejected.total(),
                kept=self._kept[place],
                rejected=dict(sorted(rejected.items())),
            )
            for place, rejected in self._rejected.items()
        )

    def dataset_hash(self) -> str:
        """Return the SHA-256 over all rows' ids and contents in the order of the ids."""
        digest = hashlib.sha256()
        for row_id in sorted(self._hashes):
            digest.update(f"{row_id}\x1f{self._hashes[row_id]}\n".encode())
        return digest.hexdigest()
