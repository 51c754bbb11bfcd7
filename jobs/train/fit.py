"""A Ray Train fit of one expert, or of several in turn, as a remote task; tried again only after a failure that may pass.

Eight experts may mean eight drivers and eight controllers, so this module imports no science: the tasks travel as
pickled bytes that only the workers read.
"""

from __future__ import annotations

import logging
import pickle
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import ray
import ray.train
from ray.train.torch import TorchConfig, TorchTrainer

from jobs.run.retries import Retries


class FitPlan(NamedTuple):
    """Ray Train's settings of the training of some experts over one loaded base."""

    name: str
    """The first artifact's id: Ray Train's run name."""
    tasks: bytes
    """The pickled list of ``ExpertTask``."""
    workers: int | tuple[int, int]
    """Number of workers, or the fewest and the most."""
    resources: dict[str, float]
    """Ray's resources of one worker."""
    max_failures: int


def start_fit(plan: FitPlan) -> Any:
    """Start a fit on one of the cluster's nodes and return its reference.

    Each fit brings a controller, which Ray Train starts beside it: on one node those of many experts would fill its
    memory. One whose node is lost is tried again elsewhere, and goes on from the expert's last checkpoint; with
    ``train.min_workers`` some three minutes later, when Ray Train's request for the lost one's workers expires.
    """
    return fit.options(
        max_retries=plan.max_failures, scheduling_strategy="SPREAD", runtime_env={"env_vars": own_cluster()}
    ).remote(plan)


def own_cluster() -> dict[str, str]:
    """Return the variables by which Ray's helpers of a training ask the cluster that they are on.

    Ray Train's PlacementGroupCleaner looks for a cluster as a command would, and with several on a host it takes the latest,
    where its controller is unknown: what a lost training had reserved is then never freed (Ray 2.60).
    """
    return {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}


@ray.remote(num_cpus=0)  # type: ignore[untyped-decorator]
def fit(plan: FitPlan) -> None:
    """Drive a training: a trainer, its workers and its restarts."""
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    on_gpu = plan.resources.get("GPU", 0.0) > 0
    # For Ray Train's own state, which is not used: the project's checkpoints are verified and in the store.
    with TemporaryDirectory(prefix="safetydpo-train-") as storage:
        TorchTrainer(
            _loop,
            train_loop_config={"tasks": plan.tasks},
            torch_config=TorchConfig(backend="nccl" if on_gpu else "gloo"),
            scaling_config=ray.train.ScalingConfig(
                num_workers=plan.workers, use_gpu=on_gpu, resources_per_worker=plan.resources
            ),
            run_config=ray.train.RunConfig(
                name=plan.name,
                storage_path=storage,
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
    from jobs.train.worker import train_experts

    train_experts(pickle.loads(config["tasks"]))  # noqa: S301 (from the driver through Ray, which pickles all it sends)
