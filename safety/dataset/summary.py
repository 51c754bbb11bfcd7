"""Summary of a dataset: counts of kept and rejected rows by category and split, provenance and content hash."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
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

    dataset_hash: str = Field(description="SHA-256 over the rows' content, by groups")
    provenance: DatasetProvenance
    counts: tuple[SplitCount, ...]
    published: int = Field(0, ge=0, description="rows whose images are their source's own, and not rendered")
    prompts: dict[str, int] = Field(description="accepted prompts by split, the never rendered ones included")

    @property
    def rows(self) -> int:
        """Return the number of rows that were to be rendered or were refused."""
        return sum(count.rows for count in self.counts)

    @property
    def kept(self) -> int:
        """Return the number of kept rows."""
        return sum(count.kept for count in self.counts)


def count_rows(records: Iterable[Record]) -> tuple[SplitCount, ...]:
    """Return the records' counts by category and split, in order of first appearance."""
    found: dict[tuple[str, str], SplitCount] = {}
    for record in records:
        kept = int(record.kept)
        rejected = {} if record.reason is None else {record.reason: 1}
        one = SplitCount(category=record.group, split=record.row.split, rows=1, kept=kept, rejected=rejected)
        place = one.category, one.split
        found[place] = one if place not in found else _sum((found[place], one))
    return tuple(found.values())


def add_counts(counts: Iterable[SplitCount]) -> tuple[SplitCount, ...]:
    """Return the sums of counts by category and split, in order of first appearance."""
    found: dict[tuple[str, str], list[SplitCount]] = {}
    for count in counts:
        found.setdefault((count.category, count.split), []).append(count)
    return tuple(_sum(several) for several in found.values())


def _sum(counts: Sequence[SplitCount]) -> SplitCount:
    rejected: Counter[RejectionReason] = Counter()
    for count in counts:
        rejected.update(count.rejected)
    first = counts[0]
    return SplitCount(
        category=first.category,
        split=first.split,
        rows=sum(count.rows for count in counts),
        kept=sum(count.kept for count in counts),
        rejected=dict(sorted(rejected.items())),
    )


def content_digest(records: Iterable[Record]) -> str:
    """Return the SHA-256 over records' ids and contents in the order of the ids; raise RuntimeError for an id twice."""
    hashes: dict[str, str] = {}
    for record in records:
        if record.row.row_id in hashes:
            raise RuntimeError(f"the row {record.row.row_id} occurs twice")
        hashes[record.row.row_id] = record.content_hash()
    return _digest(hashes)


def dataset_hash(groups: Mapping[int, str], refused: str) -> str:
    """Return the SHA-256 over a dataset's content, from the digests of its groups and of its refused rows."""
    return _digest({**{f"{number:012d}": digest for number, digest in groups.items()}, "refused": refused})


def _digest(hashes: Mapping[str, str]) -> str:
    digest = hashlib.sha256()
    for name in sorted(hashes):
        digest.update(f"{name}\x1f{hashes[name]}\n".encode())
    return digest.hexdigest()
