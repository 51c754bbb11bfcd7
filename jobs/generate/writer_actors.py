"""The Ray side of a language model that writes prompts: actors that hold it, and a stream of finished tasks.

The model loads at the first task and not in the constructor, so that a wrong one fails with its own error and not as a dead
actor.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import ray
import torch

from cluster.resources import pool_size, require
from jobs.run.ray_data import actor_pool, configure_data, require_gpu, within
from jobs.run.work_area import NumberedGroups
from safety.base import Config
from safety.errors import PromptError
from safety.families import ModelConfig, load_model
from safety.prompts.llm.config import LlmWriterConfig
from safety.prompts.llm.draft import Draft, Task
from safety.prompts.llm.embedding import EmbeddingConfig, SentenceEmbedder
from safety.prompts.llm.engines.engine import engines
from safety.prompts.llm.pair_writer import PairWriter
from safety.taxonomy import Taxonomy


class TaskDrafts(Config):
    """A finished task: what was asked, and one draft per draw."""

    task: Task
    drafts: tuple[Draft, ...]


class FinishedTasks(NumberedGroups[TaskDrafts]):
    """The finished tasks of an unfinished artifact of prompts, in the store's work area."""


def dump_task(finished: TaskDrafts) -> bytes:
    """Return a finished task as JSON."""
    return finished.model_dump_json().encode()


def parse_task(data: bytes) -> TaskDrafts:
    """Read a finished task; raise pydantic's ValidationError for anything else."""
    return TaskDrafts.model_validate_json(data)


class WriterActor:
    """An actor that holds the language model, and stores what it writes."""

    def __init__(self, config: LlmWriterConfig, taxonomy: Taxonomy, seed: int, finished: FinishedTasks) -> None:
        self.config, self.taxonomy, self.seed, self.finished = config, taxonomy, seed, finished

    @cached_property
    def writer(self) -> PairWriter:
        """Load the language model."""
        torch.set_num_threads(self.config.threads)
        engine = engines[self.config.engine.engine].load(self.config.engine)
        return PairWriter(self.config, engine, self.taxonomy, self.seed)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Write one task, store it, and return its number with the draws and pairs."""
        task = Task.model_validate_json(row["task"])
        drafts = tuple(self.writer.write(task))
        self.finished.write(int(row["number"]), TaskDrafts(task=task, drafts=drafts))
        return {"number": row["number"], "draws": len(drafts), "pairs": sum(draft.kept for draft in drafts)}


def stream_tasks(
    tasks: dict[int, Task], config: LlmWriterConfig, taxonomy: Taxonomy, seed: int, finished: FinishedTasks
) -> Iterator[dict[str, Any]]:
    """Yield each task's figures (``WriterActor``) as it is finished and stored.

    Raises:
        ConfigError: There is no such language model, or it is on a GPU and the actors are given none.
        ImpossibleResources: An actor asks for more than any node has.
        ClusterError: No task was finished in ``timeout_s``.
        SafetyError: The first cause of a failure in an actor.
    """
    field = "prompts.writer.cpus_per_actor, prompts.writer.gpus_per_actor"
    require_gpu(
        config.engine.device, config.gpus_per_actor, "prompts.writer.gpus_per_actor", "a language model's actor"
    )
    require(config.resources(), field)
    configure_data()
    rows = [{"number": number, "task": task.model_dump_json()} for number, task in tasks.items()]
    stream = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
        WriterActor,
        fn_constructor_kwargs={"config": config, "taxonomy": taxonomy, "seed": seed, "finished": finished},
        compute=actor_pool(pool_size(config.actors, config.resources()), config.min_actors, len(rows)),
        num_cpus=config.cpus_per_actor,
        num_gpus=config.gpus_per_actor,
    )
    yield from within(stream.iter_rows(), config.timeout_s, "prompts.writer.timeout_s")


def embed_prompts(config: EmbeddingConfig, prompts: Sequence[str]) -> np.ndarray:
    """Return the prompts' embeddings, fp32 [N, D] of length one; the encoder is loaded for it."""
    return SentenceEmbedder(config).embed(prompts)


def read_in_full(model: ModelConfig, prompts: Sequence[str]) -> list[bool]:
    """Return whether the model to be aligned reads each prompt in full; it is loaded for it."""
    loaded = load_model(model)

    def fits(prompt: str) -> bool:
        try:
            loaded.check_prompt(prompt)
        except PromptError:
            return False
        return True

    return [fits(prompt) for prompt in prompts]
