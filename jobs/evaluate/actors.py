"""Evaluation's Ray Data stage: actors render a group of one model's images, measure them and store the records.

A row of the stream is one group, so a group is never cut, and neither workers nor restarts change what is rendered
together. The base model loads once an actor; adapters are added to its weights and taken off again.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import ray
import torch
from pydantic import TypeAdapter

from cluster.errors import CorruptArtifact
from cluster.resources import require
from cluster.store.artifacts import ArtifactStore
from jobs.evaluate.config import EvaluateConfig
from jobs.run.artifacts import ArtifactRef
from jobs.run.ray_data import configure_data, within
from safety.errors import ArtifactFormatError, ConfigError
from safety.evaluation.measure import measure_images
from safety.evaluation.plan import BASE, RenderGroup
from safety.evaluation.records import PlannedImage, RecordTable
from safety.families import ModelConfig, ModelFamily, load_model
from safety.features.extractor import FeatureExtractor, feature_extractors
from safety.judges.judge import Judge, load_judge
from safety.lora.files import load_lora
from safety.lora.fuse import fused
from safety.lora.weights import LoraWeights
from safety.rendering import render
from safety.taxonomy import Taxonomy

HASH_DIGITS = 32
IMAGES = TypeAdapter(tuple[PlannedImage, ...])


class FinishedGroups:
    """The groups of one report that are done, in the store's work area; it can be pickled for the actors."""

    def __init__(self, store: ArtifactStore, ref: ArtifactRef) -> None:
        self.store = store
        self.place = f"work/{ref.kind}/{ref.id}/groups/"

    def write(self, number: int, table: RecordTable) -> None:
        """Write a finished group; the key's last part is the content's hash."""
        data = table.to_parquet()
        self.store.write(f"{self.place}{number:06d}-{_digest(data)}.parquet", data)

    def read_all(self) -> dict[int, RecordTable]:
        """Return the finished groups by number; damaged ones are deleted, so that they are made again."""
        found: dict[int, RecordTable] = {}
        for key in self.store.keys(self.place):
            try:
                found[int(key.removeprefix(self.place).partition("-")[0])] = self._read(key)
            except (ArtifactFormatError, CorruptArtifact, ValueError):
                self.store.delete(key)
        return found

    def clear(self) -> None:
        """Delete everything: the report is published."""
        for key in self.store.keys(self.place):
            self.store.delete(key)

    def _read(self, key: str) -> RecordTable:
        data = self.store.read(key)
        if data is None or _digest(data) != key.rpartition("-")[2].removesuffix(".parquet"):
            raise CorruptArtifact("the group is damaged", field=key, fix="run the job again: it makes this group again")
        return RecordTable.from_parquet(data)


@dataclass(frozen=True)
class EvaluationInputs:
    """All that an actor needs."""

    model: ModelConfig
    taxonomy: Taxonomy
    config: EvaluateConfig
    adapters: Mapping[str, ArtifactRef]
    """Each adapted model's adapter by name."""
    groups: FinishedGroups


class Tools(NamedTuple):
    """What an actor loads once."""

    model: ModelFamily
    judge: Judge
    features: FeatureExtractor


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
        torch.set_num_threads(inputs.config.threads)
        features = feature_extractors[inputs.config.features](device=inputs.model.device)
        return Tools(load_model(inputs.model), load_judge(inputs.config.judge, inputs.taxonomy), features)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Store a finished group and return its numbers."""
        model, judge, features = self.tools
        planned = IMAGES.validate_json(row["images"])
        started = time.perf_counter()
        with nullcontext() if row["model"] == BASE else fused(model, self._adapter(row["model"])):
            prompts, seeds = [image.prompt for image in planned], [image.seed for image in planned]
            images = render(model, prompts, seeds, self.inputs.config.render)
        records = tuple(measure_images(planned, images, judge, features))
        table = RecordTable(records=records, seconds=time.perf_counter() - started)
        self.inputs.groups.write(int(row["number"]), table)
        return {"model": row["model"], "images": len(records), "seconds": table.seconds}

    def _adapter(self, model: str) -> LoraWeights:
        """Return a model's adapter; one is kept, as groups come model by model."""
        if model not in self._adapters:
            with TemporaryDirectory(prefix="adapter-") as scratch:
                folder = self.inputs.groups.store.fetch(*self.inputs.adapters[model], Path(scratch))
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
    actors = fitting_actors(inputs.model, config)
    configure_data()
    rows = [
        {"number": group.number, "model": group.model, "images": IMAGES.dump_json(group.images).decode()}
        for group in groups
    ]
    # One block a group: a block is what one task takes, and what a restart would redo.
    stream = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
        EvaluationActor,
        fn_constructor_kwargs={"inputs": inputs},
        compute=ray.data.ActorPoolStrategy(size=min(actors, len(rows))),
        num_cpus=config.cpus_per_actor,
        num_gpus=config.gpus_per_actor,
    )
    yield from within(stream.iter_rows(), config.timeout_s, "evaluate.timeout_s")


def fitting_actors(model: ModelConfig, config: EvaluateConfig) -> int:
    """Return how many actors the cluster holds, at most ``config.actors``.

    Raises:
        ImpossibleResources: Not even one.
        ConfigError: The model is on a GPU and the actors are given none.
    """
    if model.device != "cpu" and not config.gpus_per_actor:
        raise ConfigError(
            f"the model is on {model.device!r} and an actor is given no GPU",
            field="evaluate.gpus_per_actor",
            fix="set it to 1 or a share of 1, or set model.device to 'cpu'",
        )
    needed = {"CPU": config.cpus_per_actor, "GPU": config.gpus_per_actor}
    require(needed, "evaluate.cpus_per_actor, evaluate.gpus_per_actor")
    total = ray.cluster_resources()
    rooms = [int(total.get(name, 0.0) / amount + 1e-6) for name, amount in needed.items() if amount]
    return max(1, min([config.actors, *rooms]))


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:HASH_DIGITS]
