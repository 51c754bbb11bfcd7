"""The Ray side of a language model that writes prompts: actors that hold it, and its finished tasks as they come.

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
from ray.util import ActorPool

from cluster.resources import pool_size, require, timeout_error
from jobs.run.ray_data import first_cause, require_gpu
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

RETRIES = 3
"""How often a task is tried again whose actor or node died."""


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

    def write(self, number: int, task: Task) -> dict[str, Any]:
        """Write one task, store it, and return its number with the draws and pairs."""
        drafts = tuple(self.writer.write(task))
        self.finished.write(number, TaskDrafts(task=task, drafts=drafts))
        return {"number": number, "draws": len(drafts), "pairs": sum(draft.kept for draft in drafts)}


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
    require_gpu(
        config.engine.runs_on, config.gpus_per_actor, "prompts.writer.gpus_per_actor", "a language model's actor"
    )
    require(config.resources(), "prompts.writer.cpus_per_actor, prompts.writer.gpus_per_actor")
    kind = ray.remote(WriterActor).options(
        num_cpus=config.cpus_per_actor,
        num_gpus=config.gpus_per_actor,
        max_restarts=RETRIES,
        max_task_retries=RETRIES,
    )
    size = min(pool_size(config.actors, config.resources()).most, len(tasks))
    actors = [kind.remote(config, taxonomy, seed, finished) for _ in range(size)]
    pool = ActorPool(actors)
    for number, task in tasks.items():
        pool.submit(lambda actor, given: actor.write.remote(*given), (number, task))
    try:
        while pool.has_next():
            yield _next(pool, config.timeout_s)
    finally:
        # Not by losing their handles: after an error these stay in its traceback, and the actors keep what the next needs.
        for actor in actors:
            ray.kill(actor)


def _next(pool: ActorPool, timeout_s: float) -> dict[str, Any]:
    """Return the next finished task's figures; raise its first cause, or ClusterError when none comes in time."""
    try:
        found: dict[str, Any] = pool.get_next_unordered(timeout=timeout_s)
    except TimeoutError:
        raise timeout_error("no concept's drafts were finished", timeout_s, "prompts.writer.timeout_s") from None
    except ray.exceptions.RayError as error:
        raise first_cause(error) from error
    return found


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
