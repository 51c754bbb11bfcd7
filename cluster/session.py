"""Connecting to Ray (a local cluster or an existing one) and to the store, and letting go of both."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import ray
from pydantic import BaseModel, ConfigDict, Field

from cluster.errors import ClusterError, ClusterUnreachable
from cluster.store.artifacts import ArtifactStore
from cluster.store.config import StoreConfig
from cluster.store.server import serve_store

LOCAL = "local"
ROOT = Path(__file__).parent.parent
START_ONE = "start one with 'ray start --head'"
PROBE = "import sys, ray; ray.init(address=sys.argv[1], log_to_driver=False)"


class ClusterConfig(BaseModel):
    """Which Ray cluster a run uses."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    address: str = Field(LOCAL, description="'local' starts one; 'auto' or host:port joins a running one")
    num_cpus: int | None = Field(None, ge=1, description="of a local cluster; none takes the machine's")
    num_gpus: int | None = Field(None, ge=0)
    object_store_mb: int = Field(512, ge=100, description="of a local cluster")
    dashboard: bool = Field(True, description="serve Ray's dashboard on loopback")
    auth: str = Field("disabled", pattern="^(disabled|token)$", description="Ray's token authentication")
    start_timeout_s: float = Field(60.0, gt=0, description="longest wait for a running cluster to answer")


@dataclass(frozen=True)
class Session:
    """A connected cluster and store."""

    store: ArtifactStore
    store_config: StoreConfig
    dashboard: str | None


def worker_environment(store: Mapping[str, str], config: ClusterConfig) -> dict[str, str]:
    """Return the variables every process of the cluster needs."""
    return {
        **store,
        "RAY_AUTH_MODE": config.auth,
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")])),
        **({} if config.num_gpus or config.address != LOCAL else {"DS_ACCELERATOR": "cpu"}),
    }


@contextmanager
def _exported(variables: Mapping[str, str]) -> Iterator[None]:
    """Set variables of this process's environment, and put back what was there."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def connect(cluster: ClusterConfig, store: StoreConfig) -> Iterator[Session]:
    """Open the store and the cluster; close what this call opened, Ray first, then the embedded store server.

    A process that is connected to Ray already keeps that connection, and it stays open.

    Raises:
        ClusterError: the store or the cluster cannot be used; the message names the setting and the fix.
    """
    with ExitStack() as stack:
        environment: dict[str, str] = {}
        embedded = store.endpoint is None
        if embedded:
            _require_no_ray()
            server = stack.enter_context(serve_store(store.data_dir))
            store = store.model_copy(update={"endpoint": server.endpoint})
            environment = server.environment(store.region)
            stack.enter_context(_exported(environment))
        artifacts = ArtifactStore(store)
        if embedded:
            artifacts.ensure_bucket()
        artifacts.check()
        artifacts.probe_conditional_writes()
        dashboard = stack.enter_context(_ray(cluster, worker_environment(environment, cluster)))
        yield Session(artifacts, store, dashboard)


def _require_no_ray() -> None:
    """Refuse to start the embedded store under a Ray whose workers could not have its credentials any more."""
    if ray.is_initialized():
        raise ClusterError(
            "this process is connected to Ray already, so its workers cannot get the embedded store's credentials",
            field="store.endpoint",
            fix="call ray.shutdown() first, or name the endpoint of a store that is up",
        )


@contextmanager
def _ray(config: ClusterConfig, environment: dict[str, str]) -> Iterator[str | None]:
    if ray.is_initialized():
        yield None
        return
    exported = {name: value for name, value in environment.items() if name.startswith(("RAY_", "DS_"))}
    with _exported(exported):
        if config.address != LOCAL:
            _check_reachable(config)
        try:
            yield _init(config, environment)
        finally:
            ray.shutdown()


def _init(config: ClusterConfig, environment: dict[str, str]) -> str | None:
    """Connect, and return the dashboard's URL if there is one."""
    settings: dict[str, object] = {"address": config.address}
    if config.address == LOCAL:
        settings |= {
            "num_cpus": config.num_cpus,
            "num_gpus": config.num_gpus,
            "object_store_memory": config.object_store_mb * 2**20,
            "include_dashboard": config.dashboard,
            "dashboard_host": "127.0.0.1",
        }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        try:
            context = ray.init(
                runtime_env={"env_vars": environment}, logging_level=logging.ERROR, log_to_driver=False, **settings
            )
        except (ConnectionError, TimeoutError, RuntimeError) as error:
            raise _unreachable(f"no Ray cluster answers: {error}") from error
    return f"http://{context.dashboard_url}" if context.dashboard_url else None


def _check_reachable(config: ClusterConfig) -> None:
    """Fail within the time limit when no head node answers at the address.

    ``ray.init`` waits for minutes, or ends the process, when what listens there is not a head node, so another
    process tries it first.
    """
    deadline = time.monotonic() + config.start_timeout_s
    if config.address != "auto":
        host, _, port = config.address.rpartition(":")
        try:
            with socket.create_connection((host, int(port)), timeout=config.start_timeout_s):
                pass
        except (OSError, ValueError, OverflowError) as error:
            raise _unreachable(f"nothing answers at {config.address!r}: {error}") from error
    probe = [sys.executable, "-c", PROBE, config.address]
    try:
        subprocess.run(probe, capture_output=True, check=True, timeout=max(1.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        raise _unreachable(
            f"no Ray head node answers at {config.address!r} within cluster.start_timeout_s = {config.start_timeout_s:g}"
        ) from None
    except subprocess.CalledProcessError as error:
        last = error.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise _unreachable(f"no Ray head node answers at {config.address!r}: {' '.join(last)}") from None


def _unreachable(message: str) -> ClusterUnreachable:
    return ClusterUnreachable(message, field="cluster.address", fix=f"check that it is up, {START_ONE}, or use 'local'")
