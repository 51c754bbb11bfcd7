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
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from cluster.errors import CorruptArtifact
from cluster.resources import require, this_node
from cluster.store.artifacts import ArtifactStore
from jobs.generate.config import GenerateConfig
from jobs.run.artifacts import ArtifactRef
from jobs.run.metrics import KEPT
from jobs.run.ray_data import configure_data, fitting_actors, require_gpu, within
from jobs.run.work_area import RERUN, NumberedGroups
from safety.dataset.plan import Group
from safety.dataset.record import Record, dump_group, load_group
from safety.dataset.renderer import GroupRenderer
from safety.dataset.reviewer import GroupReviewer
from safety.errors import ArtifactFormatError
from safety.families import ModelConfig, load_model
from safety.judges.judge import load_judge
from safety.taxonomy import Taxonomy

EMPTY = "empty.safetensors"


class GroupStore(NumberedGroups[list[Record]]):
    """The finished groups of one dataset, and the empty prompt's text states, in the store's work area."""

    def __init__(self, store: ArtifactStore, ref: ArtifactRef) -> None:
        super().__init__(store, ref, dump_group, load_group)

    def verified(self) -> set[int]:
        """Return the numbers of the finished groups that are not corrupt.

        Without the empty prompt's states one group counts as missing: the actor that rebuilds it writes them again.
        """
        found = super().verified()
        if self.area.load(EMPTY, parse_states) is None:
            found.discard(max(found, default=-1))
        return found

    def write_empty(self, states: dict[str, Tensor]) -> None:
        """Write the empty prompt's text states, which are the same for every actor."""
        self.area.write_once(EMPTY, save(states), parse_states)

    def read_empty(self) -> dict[str, Tensor]:
        """Return the empty prompt's text states; raise CorruptArtifact when they are missing or corrupt."""
        found = self.area.load(EMPTY, parse_states)
        if found is None:
            raise CorruptArtifact(
                "the empty prompt's states are missing or corrupt", field=self.area.place + EMPTY, fix=RERUN
            )
        return found


def parse_states(data: bytes) -> dict[str, Tensor]:
    """Return a prompt's text states; raise ArtifactFormatError for other bytes."""
    try:
        return load(data)
    except (SafetensorError, ValueError) as error:
        raise ArtifactFormatError(f"no text states: {error}", field="generate", fix=RERUN) from error


class DiffusionActor:
    """An actor that holds the base model, renders a group's prompts and encodes its images and texts."""

    def __init__(self, model: ModelConfig, config: GenerateConfig, groups: GroupStore) -> None:
        self.model, self.config, self.groups = model, config, groups

    @cached_property
    def renderer(self) -> GroupRenderer:
        """Load the model, and write the empty prompt's states for the dataset's files."""
        torch.set_num_threads(self.config.threads)
        model = load_model(self.model)
        states = {key: value.float().cpu().contiguous() for key, value in model.unconditional().items()}
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
            compute=ray.data.ActorPoolStrategy(size=min(actors, len(rows))),
            num_cpus=config.cpus_per_actor,
            num_gpus=config.gpus_per_actor,
        )
        .map(
            JudgeActor,
            fn_constructor_kwargs={"taxonomy": taxonomy, "config": config, "groups": store},
            compute=ray.data.ActorPoolStrategy(size=config.judge_actors),
            num_cpus=config.cpus_per_judge,
            num_gpus=config.gpus_per_judge,
        )
    )
    yield from within(stream.iter_rows(), config.timeout_s, "generate.timeout_s")


def diffusion_actors(model: ModelConfig, config: GenerateConfig) -> int:
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
    return fitting_actors(config.actors, each, judges)
