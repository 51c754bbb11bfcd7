"""Data generation's actors: one kind renders and encodes groups of prompts, the other judges and stores them.

Models load at the first group and not in the constructor, so that a wrong one fails with its own error and not as a
dead actor. Importing this module loads neither diffusers nor transformers, so a judge's process stays small.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from functools import cached_property
from typing import Any

import torch

from cluster.resources import this_node
from jobs.generate.config import GenerateConfig
from jobs.generate.groups import GroupStore
from jobs.run.metrics import KEPT
from safety.dataset.record import dump_group, load_group
from safety.dataset.renderer import GroupRenderer
from safety.dataset.reviewer import GroupReviewer
from safety.families import ModelConfig, load_model
from safety.judges.judge import load_judge
from safety.taxonomy import Taxonomy


class DiffusionActor:
    """An actor that holds the base model, renders a group's prompts and encodes its images and texts."""

    def __init__(self, model: ModelConfig, config: GenerateConfig, groups: GroupStore) -> None:
        self.model, self.config, self.groups = model, config, groups

    @cached_property
    def renderer(self) -> GroupRenderer:
        """Load the model, and write the empty prompt's states for the dataset's files."""
        torch.set_num_threads(self.config.threads)
        model = load_model(self.model)
        states = {key: value.float().cpu().contiguous() for key, value in model.encode_text([""]).items()}
        self.groups.write_empty(states)
        return GroupRenderer(model, self.config.render)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return the group with images, latents and text states, the seconds of its rendering, and this node."""
        renderer, records = self.renderer, load_group(row["records"])
        started = time.perf_counter()
        rendered = renderer.render(records)
        return {
            "index": row["index"],
            "seconds": time.perf_counter() - started,
            "records": dump_group(rendered),
            "node": this_node(),
        }


class JudgeActor:
    """An actor that holds the judge, keeps or rejects a group's rows and stores the finished group."""

    def __init__(self, taxonomy: Taxonomy, config: GenerateConfig, groups: GroupStore) -> None:
        self.taxonomy, self.config, self.groups = taxonomy, config, groups

    @cached_property
    def reviewer(self) -> GroupReviewer:
        """Load the judge."""
        torch.set_num_threads(self.config.threads)
        return GroupReviewer(load_judge(self.config.judge, self.taxonomy), self.config.filter)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Store the finished group and return its figures.

        ``outcomes`` are its rows by outcome as JSON; ``moved`` is true when its images came from another node.
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
