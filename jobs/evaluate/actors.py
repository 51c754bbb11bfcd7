"""Evaluation's actors and their Ray Data stream: each renders a group of one model's images, measures and stores it.

A row of the stream is one group, which is never split: neither the number of actors nor a restart changes the images
that are rendered together. The base model loads once per actor; adapters are added to its weights and removed again.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import ray
import torch
from pydantic import TypeAdapter
from torch import Tensor

from cluster.resources import PoolSize, pool_size, require
from cluster.store.artifacts import ArtifactStore
from jobs.evaluate.config import EvaluateConfig
from jobs.run.artifacts import ArtifactRef, fetch_artifact
from jobs.run.ray_data import actor_pool, configure_data, require_gpu, within
from jobs.run.work_area import NumberedGroups
from safety.evaluation.lpips import Lpips, load_lpips
from safety.evaluation.measure import measure_images
from safety.evaluation.plan import BASE, RenderGroup
from safety.evaluation.records import EvaluationSplit, PlannedImage, RecordTable
from safety.families import ModelConfig, ModelFamily, load_model
from safety.features.extractor import FeatureExtractor, load_features
from safety.judges.judge import Judge, load_judge
from safety.lora.files import LORA_FILE, load_lora
from safety.lora.fuse import fused
from safety.lora.weights import LoraWeights
from safety.rendering import render
from safety.taxonomy import Taxonomy

IMAGES = TypeAdapter(tuple[PlannedImage, ...])


class FinishedGroups(NumberedGroups[RecordTable]):
    """The finished groups of one report's images, in the store's work area."""

    def __init__(self, store: ArtifactStore, ref: ArtifactRef) -> None:
        super().__init__(store, ref, RecordTable.to_parquet, RecordTable.from_parquet)


@dataclass(frozen=True)
class EvaluationInputs:
    """Everything that an actor needs."""

    model: ModelConfig
    taxonomy: Taxonomy
    config: EvaluateConfig
    adapters: Mapping[str, ArtifactRef]
    """Each adapted model's adapter by name."""
    groups: FinishedGroups
    work: Path
    """The folder of a node's copies of artifacts."""


class Tools(NamedTuple):
    """The models that an actor loads once."""

    model: ModelFamily
    judge: Judge
    features: FeatureExtractor | None
    second: Judge | None
    fid_features: FeatureExtractor | None
    lpips: Lpips | None


class EvaluationActor:
    """An actor that renders, measures and stores groups.

    Models load at the first group and not in the constructor, so that a wrong one fails with its own error and not
    as a dead actor.
    """

    def __init__(self, inputs: EvaluationInputs) -> None:
        self.inputs = inputs
        self._adapters: dict[str, LoraWeights] = {}

    @cached_property
    def tools(self) -> Tools:
        """Load the base model, the judge and the feature extractor."""
        inputs = self.inputs
        config, device = inputs.config, inputs.model.device
        torch.set_num_threads(config.threads)
        features, apart = (
            None if name is None else load_features(name, device) for name in (config.features, config.fid_features)
        )
        judge, other = load_judge(config.judge, inputs.taxonomy), config.second_judge
        second = None if other is None else load_judge(other, inputs.taxonomy, partly=True)
        lpips = None if config.lpips is None else load_lpips(config.lpips, device)
        return Tools(load_model(inputs.model), judge, features, second, apart, lpips)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Store a finished group and return its figures."""
        model, judge, features, second, fid_features, _ = self.tools
        planned = IMAGES.validate_json(row["images"])
        started = time.perf_counter()
        with nullcontext() if row["model"] == BASE else fused(model, self._adapter(row["model"])):
            prompts, seeds = [image.prompt for image in planned], [image.seed for image in planned]
            images = render(model, prompts, seeds, self.inputs.config.render)
        changes = self._changes(row["model"], planned, images)
        records = tuple(measure_images(planned, images, judge, features, second, fid_features, changes))
        table = RecordTable(records=records, seconds=time.perf_counter() - started)
        self.inputs.groups.write(int(row["number"]), table)
        return {"model": row["model"], "images": len(records), "seconds": table.seconds}

    def _changes(self, name: str, planned: Sequence[PlannedImage], images: Tensor) -> dict[int, float]:
        """Return LPIPS of benign images from the base's of the same prompts and seeds, by place; {} for the base itself."""
        model, lpips = self.tools.model, self.tools.lpips
        places = [place for place, row in enumerate(planned) if row.part is EvaluationSplit.BENIGN]
        if lpips is None or name == BASE or not places:
            return {}
        prompts, seeds = [planned[place].prompt for place in places], [planned[place].seed for place in places]
        before = render(model, prompts, seeds, self.inputs.config.render)
        return dict(zip(places, lpips.distances(before, images[places]).tolist(), strict=True))

    def _adapter(self, model: str) -> LoraWeights:
        """Return a model's adapter; one is cached, as groups come model by model."""
        if model not in self._adapters:
            inputs = self.inputs
            folder = fetch_artifact(inputs.groups.area.store, inputs.work, inputs.adapters[model], [LORA_FILE])
            self._adapters = {model: load_lora(folder)}
        return self._adapters[model]


def evaluate_groups(groups: Sequence[RenderGroup], inputs: EvaluationInputs) -> Iterator[dict[str, Any]]:
    """Yield ``{"model", "images", "seconds"}`` as each group is finished and stored.

    Raises:
        ImpossibleResources: An actor asks for more than any node has.
        ClusterError: No group was finished in ``timeout_s``.
        SafetyError: The first cause of a failure in an actor.
    """
    config = inputs.config
    actors = evaluation_actors(inputs.model, config)
    configure_data()
    rows = [
        {"number": group.number, "model": group.model, "images": IMAGES.dump_json(group.images).decode()}
        for group in groups
    ]
    # One block per group: a block is the unit of a task, and of what a restart repeats.
    stream = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
        EvaluationActor,
        fn_constructor_kwargs={"inputs": inputs},
        compute=actor_pool(actors, config.min_actors, len(rows)),
        num_cpus=config.cpus_per_actor,
        num_gpus=config.gpus_per_actor,
    )
    yield from within(stream.iter_rows(), config.timeout_s, "evaluate.timeout_s")


def evaluation_actors(model: ModelConfig, config: EvaluateConfig) -> PoolSize:
    """Return how many actors the cluster holds, at most ``config.actors``.

    Raises:
        ImpossibleResources: Not even one.
        ConfigError: The model is on a GPU and the actors are given none.
    """
    require_gpu(model.device, config.gpus_per_actor, "evaluate.gpus_per_actor", "an actor")
    require(config.resources(), "evaluate.cpus_per_actor, evaluate.gpus_per_actor")
    return pool_size(config.actors, config.resources())
