"""Data generation's diffusion actors: each holds the base model, renders groups of prompts and encodes the pictures.

The model loads at the first group and not in the constructor, so that a wrong model fails with its own error and
not as a dead actor.
"""

from __future__ import annotations

import time
from functools import cached_property
from typing import Any

import torch

from cluster.resources import this_node
from jobs.generate.config import GenerateConfig
from jobs.generate.groups import GroupStore
from safety.dataset.record import dump_group, load_group
from safety.dataset.renderer import GroupRenderer
from safety.families import ModelConfig, load_model


class DiffusionActor:
    """An actor that holds the base model: renders a group's prompts, encodes its pictures and texts."""

    def __init__(self, model: ModelConfig, config: GenerateConfig, groups: GroupStore) -> None:
        self.model, self.config, self.groups = model, config, groups

    @cached_property
    def renderer(self) -> GroupRenderer:
        """Load the model, and leave the empty prompt's states for the dataset's files."""
        torch.set_num_threads(self.config.threads)
        model = load_model(self.model)
        states = {key: value.float().cpu().contiguous() for key, value in model.encode_text([""]).items()}
        self.groups.write_empty(states)
        return GroupRenderer(model, self.config.render)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return the group with pictures, latents and text states, the seconds that the rendering took, and where."""
        renderer, records = self.renderer, load_group(row["records"])
        started = time.perf_counter()
        rendered = renderer.render(records)
        return {
            "index": row["index"],
            "seconds": time.perf_counter() - started,
            "records": dump_group(rendered),
            "node": this_node(),
        }
