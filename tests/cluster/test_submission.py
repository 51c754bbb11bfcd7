"""What a submitted job knows of its submission, in the words of Ray's job supervisor."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cluster.errors import ClusterError
from cluster.session import ClusterConfig, open_store, resolve_address
from cluster.store.config import StoreConfig
from cluster.submission import VARIABLE, Submission, submission

TOLD = {
    "runtime_env": {"working_dir": "gcs://_ray_pkg_42c69ef4d4242fad.zip", "env_vars": {"A": "1"}},
    "metadata": {"job_submission_id": "raysubmit_1", "job_name": "raysubmit_1"},
}


@pytest.fixture
def submitted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, json.dumps(TOLD))


def test_a_process_that_was_started_otherwise_was_not_submitted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert submission() is None
    assert resolve_address(ClusterConfig()).address == "local"


def test_the_variable_is_the_one_that_ray_sets() -> None:
    from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR

    assert VARIABLE == RAY_JOB_CONFIG_JSON_ENV_VAR


def test_a_submitted_job_has_its_id_and_runs_on_its_cluster(submitted: None) -> None:
    assert submission() == Submission("raysubmit_1", frozenset({"A"}))
    assert resolve_address(ClusterConfig()).address == "auto"
    assert resolve_address(ClusterConfig(address="10.0.0.1:6379")).address == "10.0.0.1:6379"


@pytest.mark.parametrize("runtime_env", [None, {}, {"env_vars": None}])
def test_a_submission_without_a_runtime_environment_is_one_too(
    monkeypatch: pytest.MonkeyPatch, runtime_env: object
) -> None:
    monkeypatch.setenv(VARIABLE, json.dumps({**TOLD, "runtime_env": runtime_env}))
    assert submission() == Submission("raysubmit_1", frozenset())


def test_the_folder_store_of_a_submitted_job_must_outlive_its_working_folder(submitted: None, tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match=r"store\.data_dir: out/store lies in the submitted job's working folder"):
        open_store(StoreConfig())
    assert open_store(StoreConfig(data_dir=tmp_path)).config.data_dir == tmp_path
    assert open_store(StoreConfig(endpoint="http://127.0.0.1:1")).config.endpoint == "http://127.0.0.1:1"
