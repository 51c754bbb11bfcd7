"""Data generation's Ray Data stream: diffusion actors render and encode groups, judge actors judge and store them.

A row of the stream is one group, its records as parquet bytes: images travel as PNG, and a group is never split.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import ray

from cluster.resources import require
from jobs.generate.actors import DiffusionActor, JudgeActor
from jobs.generate.config import GenerateConfig
from jobs.generate.groups import GroupStore
from jobs.run.ray_data import configure_data, fitting_actors, require_gpu, within
from safety.dataset.plan import Group
from safety.dataset.record import dump_group
from safety.families import ModelConfig
from safety.taxonomy import Taxonomy


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
