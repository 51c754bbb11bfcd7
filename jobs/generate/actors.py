"""Data generation's Ray Data stream: diffusion actors render and encode groups, judge actors judge and store them.

A row of the stream is one group, its records as parquet bytes: images travel as PNG, and a group is never split.

Models load at the first group and not in the constructor, so that a wrong one fails with its own error and not as a
dead actor. Importing this module loads neither diffusers nor transformers, so a judge's process stays small.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import ray
import torch

from cluster.resources import PoolSize, pool_size, require, this_node
from jobs.generate.config import GenerateConfig
from jobs.generate.groups import GroupStore
from jobs.run.metrics import KEPT
from jobs.run.ray_data import actor_pool, configure_data, require_gpu, within
from safety.dataset.plan import Group
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
        states = {key: value.cpu().contiguous() for key, value in model.unconditional().items()}
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

    def __init__(self, model: str, taxonomy: Taxonomy, config: GenerateConfig, groups: GroupStore) -> None:
        self.model, self.taxonomy, self.config, self.groups = model, taxonomy, config, groups

    @cached_property
    def reviewer(self) -> GroupReviewer:
        """Load the judge."""
        torch.set_num_threads(self.config.threads)
        return GroupReviewer(load_judge(self.config.judge, self.taxonomy), self.config.filter)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Store the finished group and return its figures, those of the store as JSON among them.

        ``outcomes`` are its rows by outcome as JSON; ``moved`` is true when its images came from another node.
        """
        records = self.reviewer.review(load_group(row["records"]))
        figures = self.groups.store_group(int(row["index"]), records, self.model)
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
            "figures": figures.model_dump_json(),
        }


def stream_groups(
    groups: Sequence[Group], model: ModelConfig, taxonomy: Taxonomy, config: GenerateConfig, store: GroupStore
) -> Iterator[dict[str, Any]]:
    """Yield each group's figures (``JudgeActor``) as it is finished and stored.

    Raises:
        ImpossibleResources: An actor asks for more than any node has.
        ClusterError: No group was finished in ``timeout_s``.
        SafetyError: The first cause of a failure in an actor.
    """
    actors = diffusion_actors(model, config)
    configure_data()
    rows = [{"index": group.index, "records": dump_group(group.records)} for group in groups]
    # One block per group: a block is the unit of a task, and of what a restart repeats.
    stream = (
        ray.data.from_items(rows, override_num_blocks=len(rows))
        .map(
            DiffusionActor,
            fn_constructor_kwargs={"model": model, "config": config, "groups": store},
            compute=actor_pool(actors, config.min_actors, len(rows)),
            num_cpus=config.cpus_per_actor,
            num_gpus=config.gpus_per_actor,
        )
        .map(
            JudgeActor,
            fn_constructor_kwargs={"model": model.path, "taxonomy": taxonomy, "config": config, "groups": store},
            compute=actor_pool(PoolSize(1, config.judge_actors), config.judge_actors, len(rows)),
            num_cpus=config.cpus_per_judge,
            num_gpus=config.gpus_per_judge,
        )
    )
    yield from within(stream.iter_rows(), config.timeout_s, "generate.timeout_s")


def diffusion_actors(model: ModelConfig, config: GenerateConfig) -> PoolSize:
    """Return how many diffusion actors the cluster holds beside the judges, at most ``config.actors``.

    Raises:
        ImpossibleResources: Not even one.
        ConfigError: The model is on a GPU and the actors are given none.
    """
    require_gpu(model.device, config.gpus_per_actor, "generate.gpus_per_actor", "a diffusion actor")
    each, judge = config.resources(), config.judge_resources()
    require(each, "generate.cpus_per_actor, generate.gpus_per_actor")
    require(judge, "generate.cpus_per_judge, generate.gpus_per_judge")
    require(config.pair_resources(), "generate.cpus_per_actor, generate.cpus_per_judge")
    judges = {name: config.judge_actors * amount for name, amount in judge.items()}
    return pool_size(config.actors, each, judges)
