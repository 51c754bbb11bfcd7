"""What may pass is tried again, and what would come again ends at once: by kinds of errors, in Ray's wrappers."""

from __future__ import annotations

import pickle

import pytest
import ray
from ray.train import WorkerGroupError

from cluster import errors as cluster_errors
from cluster.errors import (
    AlreadyPublished,
    ClusterError,
    ClusterUnreachable,
    CorruptArtifact,
    ImpossibleResources,
    StoreUnreachable,
    WrongCredentials,
)
from jobs.run.ray_data import first_cause
from jobs.run.retries import Retries, is_lasting
from jobs.train.fit import EndAtOnce
from safety import errors as safety_errors
from safety.errors import ConfigError, SafetyError, TrainingHealthError

WHERE = {"field": "train.expert", "fix": "lower beta"}
LOST = ray.exceptions.RayActorError()
KNOWN = [
    kind
    for module in (safety_errors, cluster_errors)
    for kind in vars(module).values()
    if isinstance(kind, type) and issubclass(kind, SafetyError | ClusterError)
]
PASSING = (ClusterError, StoreUnreachable, ClusterUnreachable, CorruptArtifact)


class Wrapped(Exception):
    """An error as Ray Train sends it: with the cause inside."""

    def __init__(self, cause: BaseException) -> None:
        super().__init__("a traceback")
        self._base_exc = cause


@pytest.mark.parametrize("kind", KNOWN, ids=lambda kind: kind.__name__)
def test_every_known_error_either_lasts_or_may_pass(kind: type[Exception]) -> None:
    assert is_lasting(kind("x", **WHERE)) is (kind not in PASSING)


@pytest.mark.parametrize(
    "kind", [ConfigError, TrainingHealthError, ImpossibleResources, WrongCredentials, AlreadyPublished]
)
@pytest.mark.parametrize("others", [[], [LOST], [RuntimeError("Connection closed by peer [127.0.0.1]:1")]])
def test_a_known_error_ends_at_the_first_try(kind: type[Exception], others: list[Exception]) -> None:
    error = kind("not finite at step 3", **WHERE)
    assert Retries().final([*others, Wrapped(error)]) is error
    with pytest.raises(kind, match="not finite at step 3"):
        EndAtOnce().after_exception(None, dict(enumerate([*others, Wrapped(error)])))


@pytest.mark.parametrize(
    "error",
    [
        LOST,
        ray.exceptions.NodeDiedError("node"),
        ray.exceptions.OutOfMemoryError("killed"),
        ray.exceptions.WorkerCrashedError(),
        StoreUnreachable("away", **WHERE),
        ConnectionResetError("reset"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_may_pass_is_tried_again_however_often_it_comes(error: Exception) -> None:
    retries = Retries()
    assert [retries.final([Wrapped(error)]) for _ in range(9)] == [None] * 9


def test_an_unknown_error_ends_when_it_comes_again_word_for_word() -> None:
    retries = Retries()
    assert retries.final([Wrapped(RuntimeError("shape [3]"))]) is None
    assert retries.final([Wrapped(RuntimeError("shape [4]"))]) is None
    again = Wrapped(RuntimeError("shape [4]"))
    assert retries.final([again]) is again


def test_what_a_lost_worker_does_to_the_others_is_no_repeated_error() -> None:
    retries = Retries()
    closed = RuntimeError("Connection closed by peer")
    assert [retries.final([LOST, closed]) for _ in range(4)] == [None] * 4
    ports = [RuntimeError(f"Connection closed by peer [127.0.0.1]:{port}") for port in range(4)]
    assert [retries.final([error]) for error in ports] == [None] * 4


def test_a_corrupt_artifact_is_read_again_once() -> None:
    retries, error = Retries(), CorruptArtifact("it does not match", **WHERE)
    assert [retries.final([Wrapped(error)]) for _ in range(2)] == [None, error]


def test_the_cause_is_found_behind_the_controllers_error() -> None:
    cause = TrainingHealthError("not finite", **WHERE)
    for error in (
        ray.train.ControllerError(cause),
        ray.train.ControllerError(WorkerGroupError("x", {0: Wrapped(cause)})),
    ):
        assert first_cause(error) is cause
    found = first_cause(pickle.loads(pickle.dumps(ray.train.ControllerError(cause))))
    assert isinstance(found, TrainingHealthError)
