"""Data generation's Ray Data stream: diffusion actors render and encode groups, judge actors judge and store them.

A row of the stream is one group, its records as parquet bytes: pictures travel as PNG, and a group is never cut.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import ray

from cluster.resources import require
from jobs.generate.config import GenerateConfig
from jobs.generate.diffusion import DiffusionActor
from jobs.generate.groups import GroupStore
from jobs.generate.judging import JudgeActor
from jobs.run.ray_data import configure_data, within
from safety.dataset.plan import Group
from safety.dataset.record import dump_group
from safety.errors import ConfigError
from safety.families import ModelConfig
from safety.taxonomy import Taxonomy


def stream_groups(
    groups: Sequence[Group], model: ModelConfig, taxonomy: Taxonomy, config: GenerateConfig, store: GroupStore
) -> Iterator[dict[str, Any]]:
    """Yield the numbers of each group (``JudgeActor``) as it is finished and stored.

    Raises:
        ImpossibleResources: An actor asks for more than any node has.
        ClusterError: No group was finished in ``timeout_s``.
        SafetyError: The first cause of a failure in an actor.
    """
    actors = fitting_actors(model, config)
    configure_data()
    rows = [{"index": group.index, "records": dump_group(group.records)} for group in groups]
    # One block a group: a block is what one task takes, and what a restart would redo.
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


def fitting_actors(model: ModelConfig, config: GenerateConfig) -> int:
    """Return how many diffusion actors the cluster holds beside the judges, at most ``config.actors``.

    Raises:
        ImpossibleResources: Not even one.
        ConfigError: The model is on a GPU and the actors are given none.
    """
    if model.device != "cpu" and not config.gpus_per_actor:
        raise ConfigError(
            f"the model is on {model.device!r} and a diffusion actor is given no GPU",
            field="generate.gpus_per_actor",
            fix="set it to 1 or a share of 1, or set model.device to 'cpu'",
        )
    needed = {"CPU": config.cpus_per_actor, "GPU": config.gpus_per_actor}
    judge = {"CPU": config.cpus_per_judge, "GPU": config.gpus_per_judge}
    require(needed, "generate.cpus_per_actor, generate.gpus_per_actor")
    require(judge, "generate.cpus_per_judge, generate.gpus_per_judge")
    require({name: needed[name] + judge[name] for name in needed}, "generate.cpus_per_actor, generate.cpus_per_judge")
    total = ray.cluster_resources()
    rooms = [
        (total.get(name, 0.0) - judge[name] * config.judge_actors) / amount for name, amount in needed.items() if amount
    ]
    return max(1, min([config.actors, *(int(room + 1e-6) for room in rooms)]))
