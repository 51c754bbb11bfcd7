"""One expert's Ray Train fit as a remote task, tried again only after a failure that may pass.

Eight experts mean eight drivers and eight controllers, so this module imports no science: the task travels as
pickled bytes that only the workers read.
"""

from __future__ import annotations

import logging
import pickle
from typing import Any, NamedTuple

import ray
import ray.train
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from jobs.run.retries import Retries


class FitPlan(NamedTuple):
    """Ray Train's settings of one expert's training."""

    name: str
    """The artifact's id: Ray Train's run name."""
    task: bytes
    """The pickled ``ExpertTask``."""
    workers: int | tuple[int, int]
    """Number of workers, or the fewest and the most."""
    resources: dict[str, float]
    """Ray's resources of one worker."""
    max_failures: int
    storage: str
    """Folder of Ray Train's own state; the project's checkpoints are in the store."""


def start_fit(plan: FitPlan) -> Any:
    """Start a fit on this process's node, without which the run would end anyway; return its reference."""
    node = ray.get_runtime_context().get_node_id()
    return fit.options(
        max_retries=plan.max_failures, scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=True)
    ).remote(plan)


@ray.remote(num_cpus=0)  # type: ignore[untyped-decorator]
def fit(plan: FitPlan) -> None:
    """Drive the training of one expert: a trainer, its workers and its restarts."""
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    on_gpu = plan.resources.get("GPU", 0.0) > 0
    TorchTrainer(
        _loop,
        train_loop_config={"task": plan.task},
        torch_config=TorchConfig(backend="nccl" if on_gpu else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=plan.workers, use_gpu=on_gpu, resources_per_worker=plan.resources
        ),
        run_config=ray.train.RunConfig(
            name=plan.name,
            storage_path=plan.storage,
            failure_config=ray.train.FailureConfig(max_failures=plan.max_failures),
            callbacks=[EndAtOnce()],
        ),
    ).fit()


class EndAtOnce(ray.train.UserCallback):  # type: ignore[misc]
    """Ends a training at a failure that would come again; Ray Train alone would restart it ``max_failures`` times.

    An exception of a callback is the controller's, which Ray Train does not try again.
    """

    def __init__(self) -> None:
        self._retries = Retries()

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:  # noqa: ARG002
        """Raise the error that would come again."""
        found = self._retries.final(worker_exceptions.values())
        if found is not None:
            # The controller would print the error with its own traceback, before the job reports it.
            logging.getLogger("ray.train").setLevel(logging.CRITICAL)
            raise found


def _loop(config: dict[str, Any]) -> None:
    # Imported in the worker, for its weight: the driver does without the training libraries.
    from jobs.train.worker import train_expert

    train_expert(pickle.loads(config["task"]))  # noqa: S301 (from the driver through Ray, which pickles all it sends)
