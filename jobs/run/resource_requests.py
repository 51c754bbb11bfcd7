"""What each stage of a run asks of the cluster, for the preflight; the stages themselves ask again when they start."""

from __future__ import annotations

from cluster.preflight.checks import ResourceRequest
from jobs.run.config import RunConfig


def resource_requests(run: RunConfig) -> list[ResourceRequest]:
    """Return what the run's actors, workers and replicas take."""
    generate, train, merge, evaluate, serve = run.generate, run.train, run.merge, run.evaluate, run.serve
    renderer = {"CPU": generate.cpus_per_actor, "GPU": generate.gpus_per_actor}
    judge = {"CPU": generate.cpus_per_judge, "GPU": generate.gpus_per_judge}
    both = {name: renderer[name] + judge[name] for name in renderer}
    measuring = {"CPU": evaluate.cpus_per_actor, "GPU": evaluate.gpus_per_actor}
    replica = {"CPU": serve.num_cpus, "GPU": serve.num_gpus}
    return [
        ResourceRequest(
            "generate: a diffusion actor with a judge", "generate.cpus_per_actor, generate.gpus_per_actor", both, 1, 1
        ),
        ResourceRequest("generate: diffusion actors", "generate.actors", renderer, 1, generate.actors),
        ResourceRequest(
            "generate: judges", "generate.judge_actors", judge, generate.judge_actors, generate.judge_actors
        ),
        ResourceRequest(
            "train: workers of one expert",
            "train.workers, train.cpus_per_worker, train.gpus_per_worker",
            train.resources(),
            train.min_workers or train.workers,
            train.workers,
        ),
        ResourceRequest(
            "merge: workers",
            "merge.workers, merge.cpus_per_worker, merge.gpus_per_worker",
            merge.resources(),
            1,
            merge.workers,
        ),
        ResourceRequest(
            "evaluate: actors",
            "evaluate.actors, evaluate.cpus_per_actor, evaluate.gpus_per_actor",
            measuring,
            1,
            evaluate.actors,
        ),
        ResourceRequest(
            "serve: replicas", "serve.replicas, serve.num_cpus, serve.num_gpus", replica, serve.replicas, serve.replicas
        ),
    ]


def gpu_settings(run: RunConfig) -> list[str]:
    """Return the settings that ask for a GPU."""
    amounts = {
        **_model_gpus(run),
        "generate.gpus_per_judge": run.generate.gpus_per_judge,
        "serve.num_gpus": run.serve.num_gpus,
    }
    device = ["model.device"] if run.model.device != "cpu" else []
    return device + [name for name, amount in amounts.items() if amount > 0]


def without_gpu(run: RunConfig) -> list[str]:
    """Return the settings that give a process no GPU although the model is on one."""
    return [] if run.model.device == "cpu" else [name for name, amount in _model_gpus(run).items() if not amount]


def _model_gpus(run: RunConfig) -> dict[str, float]:
    """Return the shares of a GPU that processes take which hold the run's model."""
    return {
        "generate.gpus_per_actor": run.generate.gpus_per_actor,
        "train.gpus_per_worker": run.train.gpus_per_worker,
        "merge.gpus_per_worker": run.merge.gpus_per_worker,
        "evaluate.gpus_per_actor": run.evaluate.gpus_per_actor,
    }
