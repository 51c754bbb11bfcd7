"""The plan of a dataset: the rows to render, in fixed groups.

A group is the unit of work: it is rendered, judged and stored at once. Its rows depend on the prompts alone, so neither
the number of workers nor a restart can change a batch, and thereby any pixel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from safety.dataset.filter import RejectionReason
from safety.dataset.record import Record, row_group
from safety.dataset.summary import BENIGN
from safety.prompts.guard import MinorSafetyFilter
from safety.prompts.pictures import Picture
from safety.prompts.rows import PromptRow, PromptSet
from safety.rendering import row_seed

RENDERED_SPLITS = ("train", "validation")


@dataclass(frozen=True)
class Group:
    """Rows of one category (or benign ones), in the order of their ids."""

    index: int
    category: str
    rows: tuple[PromptRow, ...]
    seed: int
    """The run's seed."""
    pictures: Mapping[str, tuple[Picture, ...]] = field(default_factory=dict)
    """Of the rows whose source has pictures, by id."""

    @property
    def records(self) -> tuple[Record, ...]:
        """Return the rows as records to fill in; they are made anew, so that a plan of a million rows stays small."""
        return tuple(
            Record(row=row, seed=row_seed(self.seed, row.row_id), pictures=self.pictures.get(row.row_id, ()))
            for row in self.rows
        )


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

    def in_category(self, category: str) -> list[Group]:
        """Return a category's groups in their order."""
        return self._by_category.get(category, [])

    @cached_property
    def _by_category(self) -> dict[str, list[Group]]:
        found: dict[str, list[Group]] = {}
        for group in self.groups:
            found.setdefault(group.category, []).append(group)
        return found

    @property
    def rows(self) -> int:
        """Return the number of rows, rendered or refused."""
        return sum(len(group.rows) for group in self.groups) + sum(len(records) for records in self.refused.values())

    @property
    def published(self) -> int:
        """Return the number of rows with pictures of their source."""
        return sum(len(group.pictures) for group in self.groups)


def plan_dataset(
    prompts: PromptSet, group_size: int, seed: int, pictures: Mapping[str, tuple[Picture, ...]] | None = None
) -> DatasetPlan:
    """Divide the training and validation rows into groups; prompts that the guard refuses are left out of all splits.

    Args:
        prompts: The run's prompts.
        group_size: Most rows per group.
        seed: The run seed, from which each row's noise comes.
        pictures: Those of the sources, by row id: these rows are not rendered.
    """
    guard, given = MinorSafetyFilter(), pictures or {}
    rows: tuple[PromptRow, ...] = (*prompts.benign, *prompts.pairs)
    refused = {row.row_id for row in rows if any(guard.check(prompt) for prompt in row.prompts)}
    by_category: dict[str, list[PromptRow]] = {}
    withheld_rows: dict[str, list[Record]] = {}
    for row in rows:
        if row.row_id in refused:
            row_noise = row_seed(seed, row.row_id)
            withheld = Record(row=row.withheld(), seed=row_noise, reason=RejectionReason.REFUSED_PROMPT)
            withheld_rows.setdefault(withheld.group, []).append(withheld)
        elif row.split in RENDERED_SPLITS:
            by_category.setdefault(row_group(row), []).append(row)
    groups: list[Group] = []
    for category, own in by_category.items():
        ordered = sorted(own, key=lambda row: row.row_id)
        for start in range(0, len(ordered), group_size):
            chosen = tuple(ordered[start : start + group_size])
            found = {row.row_id: given[row.row_id] for row in chosen if row.row_id in given}
            groups.append(Group(len(groups), category, chosen, seed, found))
    accepted = PromptSet(
        pairs=tuple(p for p in prompts.pairs if p.pair_id not in refused),
        benign=tuple(b for b in prompts.benign if b.prompt_id not in refused),
    )
    return DatasetPlan(accepted, tuple(groups), {category: tuple(found) for category, found in withheld_rows.items()})
