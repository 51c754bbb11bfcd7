"""The names of a run's merges, and their labels in reports.

The searched Co-Merge and its start have fixed names. A baseline has its method's name, with a number where that name is
taken: a second task arithmetic is "task-arithmetic-2", a Co-Merge with given parameters "co-merge-2".
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from safety.merge.method import MethodConfig, merge_methods

SEARCHED, START = "co-merge", "co-merge-default"
LABELS = {SEARCHED: "Co-Merge (searched)", START: "Co-Merge (start)"}


def name_baselines(configs: Sequence[MethodConfig]) -> dict[str, MethodConfig]:
    """Return the baselines by a name that no other merge of the run has."""
    taken = Counter([SEARCHED])
    named: dict[str, MethodConfig] = {}
    for config in configs:
        taken[config.name] += 1
        count = taken[config.name]
        named[config.name if count == 1 else f"{config.name}-{count}"] = config
    return named


def merge_label(name: str) -> str:
    """Return the label of a run's merge; a name of no registered method is its own label."""
    if name in LABELS:
        return LABELS[name]
    if name in merge_methods:
        return merge_methods[name].label
    numbered = re.fullmatch(r"(.+)-(\d+)", name)
    if numbered and numbered[1] in merge_methods:
        return f"{merge_methods[numbered[1]].label} {numbered[2]}"
    return name
