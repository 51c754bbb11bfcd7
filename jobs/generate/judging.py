"""Data generation's judge actors: each holds the judge, keeps or rejects a group's rows and stores the group.

The judge loads at the first group and not in the constructor, so that a wrong one fails with its own error and not
as a dead actor.
"""

from __future__ import annotations

import json
from collections import Counter
from functools import cached_property
from typing import Any

import torch

from cluster.resources import this_node
from jobs.generate.config import GenerateConfig
from jobs.generate.groups import GroupStore
from jobs.run.metrics import KEPT
from safety.dataset.record import load_group
from safety.dataset.reviewer import GroupReviewer
from safety.judges.judge import load_judge
from safety.taxonomy import Taxonomy


class JudgeActor:
    """An actor that holds the judge: keeps or rejects a group's rows and stores the finished group."""

    def __init__(self, taxonomy: Taxonomy, config: GenerateConfig, groups: GroupStore) -> None:
        self.taxonomy, self.config, self.groups = taxonomy, config, groups

    @cached_property
    def reviewer(self) -> GroupReviewer:
        """Load the judge."""
        torch.set_num_threads(self.config.threads)
        return GroupReviewer(load_judge(self.config.judge, self.taxonomy), self.config.filter)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Store the finished group and return its numbers; the ``outcomes`` of its category are JSON.

        ``moved`` says whether its pictures had to travel to this node.
        """
        records = self.reviewer.review(load_group(row["records"]))
        self.groups.write(int(row["index"]), records)
        outcomes = Counter(KEPT if record.reason is None else str(record.reason) for record in records)
        return {
            "index": row["index"],
            "rows": len(records),
            "kept": outcomes[KEPT],
            "images": sum(len(record.images) for record in records),
            "seconds": row["seconds"],
            "moved": row["node"] != this_node(),
            "category": records[0].group,
            "outcomes": json.dumps(outcomes),
        }
