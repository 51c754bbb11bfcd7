"""Connecting to Ray (a local cluster or an existing one) and to the store, and letting go of both."""

from __future__ import annotations

import logging
import os
import socket
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import ray
from pydantic import BaseModel, ConfigDict, Field

from cluster.errors import ClusterUnreachable
from cluster.store.artifacts import ArtifactStore
from cluster.store.config import StoreConfig
from cluster.store.server import serve_store

LOCAL = "local"
ROOT = Path(__file__).parent.parent


class ClusterConfig(BaseModel):
    """Which Ray cluster a run uses."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    address: str = Field(LOCAL, description="'local' starts one; 'auto' or host:port joins a running one")
    num_cpus: int | None = Field(None, ge=1, description="of a local cluster; none takes the machine's")
    num_gpus: int | None = Field(None, ge=0)
    object_store_mb: int = Field(512, ge=100, description="of a local cluster")
    dashboard: bool = Field(True, description="serve Ray's dashboard on loopback")
    auth: str = Field("disabled", pattern="^(disabled|token)$", description="Ray's token authentication")
    start_timeout_s: float = Field(60.0, gt=0)


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
def connect(cluster: ClusterConfig, store: StoreConfig) -> Iterator[Session]:
    """Open the store and the cluster, and close what this call opened.

    Raises:
        ClusterError: the store or the cluster cannot be used; the message names the setting and the fix.
    """
    with ExitStack() as stack:
        environment: dict[str, str] = {}
        if store.endpoint is None:
            server = stack.enter_context(serve_store(store.data_dir))
            store = store.model_copy(update={"endpoint": server.endpoint})
            environment = server.environment(store.region)
            os.environ.update(environment)
            ArtifactStore(store).ensure_bucket()
        artifacts = ArtifactStore(store)
        artifacts.check()
        artifacts.probe_conditional_writes()
        dashboard = stack.enter_context(_ray(cluster, worker_environment(environment, cluster)))
        yield Session(artifacts, store, dashboard)


@contextmanager
def _ray(config: ClusterConfig, environment: dict[str, str]) -> Iterator[str | None]:
    os.environ.update({k: v for k, v in environment.items() if k.startswith(("RAY_", "DS_"))})
    if config.address not in (LOCAL, "auto"):
        _check_reachable(config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        try:
            context = _init(config, environment)
        except (ConnectionError, TimeoutError, RuntimeError) as error:
            raise ClusterUnreachable(
                f"no Ray cluster answers: {error}", field="cluster.address", fix="start one with 'ray start --head', or use 'local'"
            ) from error
    try:
        url = getattr(context, "dashboard_url", None)
        yield f"http://{url}" if url else None
    finally:
        ray.shutdown()


def _init(config: ClusterConfig, environment: dict[str, str]) -> object:
    common = {
        "runtime_env": {"env_vars": environment},
        "configure_logging": True,
        "logging_level": logging.ERROR,
        "log_to_driver": False,
    }
    if config.address != LOCAL:
        return ray.init(address=config.address, **common)
    return ray.init(
        num_cpus=config.num_cpus,
        num_gpus=config.num_gpus,
        object_store_memory=config.object_store_mb * 2**20,
        include_dashboard=config.dashboard,
        dashboard_host="127.0.0.1",
        **common,
    )


def _check_reachable(config: ClusterConfig) -> None:
    """Fail within the time limit when nothing listens at the address: Ray itself would wait for minutes."""
    host, _, port = config.address.removeprefix("ray://").rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=config.start_timeout_s):
            return
    except (OSError, ValueError) as error:
        raise ClusterUnreachable(
            f"nothing answers at {config.address}: {error}", field="cluster.address", fix="check the address and that the head node is up"
        ) from error
