"""The resources that each stage of a run asks of the cluster, for the preflight; each stage checks its own again."""

from __future__ import annotations

from cluster.preflight.checks import ResourceRequest
from jobs.run.config import RunConfig


def resource_requests(run: RunConfig) -> list[ResourceRequest]:
    """Return the requests of the run's actors, workers and replicas."""
    generate, train, merge, evaluate, serve = run.generate, run.train, run.merge, run.evaluate, run.serve
    replicas, replica = serve.replicas, {"CPU": serve.num_cpus, "GPU": serve.num_gpus}
    # What it is, the settings that ask for it, the resources of each, the fewest that can run, and how many are wanted.
    rows = (
        (
            "generate: a diffusion actor with a judge",
            "generate.cpus_per_actor, generate.gpus_per_actor",
            generate.pair_resources(),
            1,
            1,
        ),
        ("generate: diffusion actors", "generate.actors", generate.resources(), 1, generate.actors),
        (
            "generate: judges",
            "generate.judge_actors",
            generate.judge_resources(),
            generate.judge_actors,
            generate.judge_actors,
        ),
        (
            "train: workers of one expert",
            "train.workers, train.cpus_per_worker, train.gpus_per_worker",
            train.resources(),
            train.min_workers or train.workers,
            train.workers,
        ),
        (
            "merge: workers",
            "merge.workers, merge.cpus_per_worker, merge.gpus_per_worker",
            merge.resources(),
            1,
            merge.workers,
        ),
        (
            "evaluate: actors",
            "evaluate.actors, evaluate.cpus_per_actor, evaluate.gpus_per_actor",
            evaluate.resources(),
            1,
            evaluate.actors,
        ),
        ("serve: replicas", "serve.replicas, serve.num_cpus, serve.num_gpus", replica, replicas, replicas),
    )
    return [ResourceRequest(*row) for row in rows]


def gpu_settings(run: RunConfig) -> list[str]:
    """Return the settings that ask for a GPU."""
    amounts = {
        **_model_gpus(run),
        "generate.gpus_per_judge": run.generate.gpus_per_judge,
    }
    device = ["model.device"] if run.model.device != "cpu" else []
    return device + [name for name, amount in amounts.items() if amount > 0]


def without_gpu(run: RunConfig) -> list[str]:
    """Return the settings that give a process no GPU although the model is on one."""
    return [] if run.model.device == "cpu" else [name for name, amount in _model_gpus(run).items() if not amount]


def _model_gpus(run: RunConfig) -> dict[str, float]:
    """Return the GPU shares of the processes that hold the run's model."""
    return {
        "generate.gpus_per_actor": run.generate.gpus_per_actor,
        "train.gpus_per_worker": run.train.gpus_per_worker,
        "merge.gpus_per_worker": run.merge.gpus_per_worker,
        "evaluate.gpus_per_actor": run.evaluate.gpus_per_actor,
        "serve.num_gpus": run.serve.num_gpus,
    }
