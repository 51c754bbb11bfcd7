"""The plan of a dataset: the rows to render, in fixed groups.

A group is the unit of work: it is rendered, judged and stored at once. Its rows depend on the prompts alone, so neither
the number of workers nor a restart can change a batch, and thereby any pixel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from safety.dataset.filter import RejectionReason
from safety.dataset.record import Record
from safety.dataset.summary import BENIGN
from safety.prompts.guard import MinorSafetyFilter
from safety.prompts.rows import PromptRow, PromptSet
from safety.rendering import row_seed

RENDERED_SPLITS = ("train", "validation")


@dataclass(frozen=True)
class Group:
    """Rows of one category (or benign ones), in the order of their ids."""

    index: int
    category: str
    records: tuple[Record, ...]


@dataclass(frozen=True)
class DatasetPlan:
    """The accepted prompts, the rows to render, and the rows refused beforehand."""

    prompts: PromptSet
    groups: tuple[Group, ...]
    refused: Mapping[str, tuple[Record, ...]]
    """By category."""

    @property
    def categories(self) -> tuple[str, ...]:
        """Return the categories with rows to render or refused ones, benign first."""
        return tuple(dict.fromkeys([BENIGN, *(group.category for group in self.groups), *self.refused]))

    @property
    def rows(self) -> int:
        """Return the number of rows, rendered or refused."""
        return sum(len(g.records) for g in self.groups) + sum(len(records) for records in self.refused.values())


def plan_dataset(prompts: PromptSet, group_size: int, seed: int) -> DatasetPlan:
    """Divide the training and validation rows into groups; prompts that the guard refuses are left out of all splits.

    Args:
        prompts: The writer's prompts.
        group_size: Most rows per group.
        seed: The run seed, from which each row's noise comes.
    """
    guard = MinorSafetyFilter()
    rows: tuple[PromptRow, ...] = (*prompts.benign, *prompts.pairs)
    refused = {row.row_id for row in rows if any(guard.check(prompt) for prompt in row.prompts)}
    by_category: dict[str, list[Record]] = {}
    withheld_rows: dict[str, list[Record]] = {}
    for row in rows:
        record = Record(row=row, seed=row_seed(seed, row.row_id))
        if row.row_id in refused:
            withheld = Record(row=row.withheld(), seed=record.seed, reason=RejectionReason.REFUSED_PROMPT)
            withheld_rows.setdefault(record.group, []).append(withheld)
        elif row.split in RENDERED_SPLITS:
            by_category.setdefault(record.group, []).append(record)
    groups: list[Group] = []
    for category, records in by_category.items():
        ordered = sorted(records, key=lambda record: record.row.row_id)
        for start in range(0, len(ordered), group_size):
            groups.append(Group(len(groups), category, tuple(ordered[start : start + group_size])))
    accepted = PromptSet(
        pairs=tuple(p for p in prompts.pairs if p.pair_id not in refused),
        benign=tuple(b for b in prompts.benign if b.prompt_id not in refused),
    )
    return DatasetPlan(accepted, tuple(groups), {category: tuple(found) for category, found in withheld_rows.items()})
