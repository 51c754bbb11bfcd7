"""Connecting to Ray (a local cluster or an existing one) and to the store, and letting go of both."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import ray
from pydantic import Field
from ray._private import auto_init_hook

# Ray reads RAY_AUTH_MODE once, at its import. A process that sets it later must have it read again, or its own side
# and its cluster's disagree: there is no public way, and this is Ray's own (authentication_token_setup.py).
from ray._raylet import Config as RayEnvironment  # type: ignore[attr-defined]

from cluster.base import Config
from cluster.errors import ClusterError, ClusterUnreachable, WrongToken
from cluster.progress import set_ray_data_console_level
from cluster.store.artifacts import ArtifactStore
from cluster.store.config import StoreConfig
from cluster.store.server import serve_store
from cluster.submission import submission

LOCAL, AUTO = "local", "auto"
TOKEN = "token"
PROXY_CALLBACK = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
"""The variable in which Serve's HTTP servers look up the function that returns their middlewares."""
ROOT = Path(__file__).parent.parent
DEVICES = Path("/dev")
START_ONE = "start one with 'ray start --head'"
PROBE = """
import sys, ray
try:
    ray.init(address=sys.argv[1], log_to_driver=False)
except Exception as error:
    said = f"{type(error).__name__}: {error}"
    # Ray says that it cannot connect, and wraps the traceback of why.
    refused = "AuthenticationError" in f"{said} {error.__cause__}"
    sys.exit("AuthenticationError" if refused else " ".join(said.split()))
"""
CLUSTER_PROVIDED_VARIABLES = ("RAY_AUTH_MODE", "PYTHONPATH")
"""What a submitted job has from the cluster that runs it: whom it lets in, and where each node has unpacked the code."""


class ClusterConfig(Config):
    """Which Ray cluster a run uses."""

    address: str = Field(
        LOCAL,
        description="'local' starts one; 'auto' or host:port joins a running one. A job that was submitted to a cluster "
        "runs on it, 'local' or not",
    )
    num_cpus: int | None = Field(None, ge=1, description="of a local cluster; none takes the machine's")
    num_gpus: int | None = Field(None, ge=0)
    object_store_mb: int = Field(512, ge=100, description="of a local cluster")
    dashboard: bool = Field(True, description="serve Ray's dashboard on loopback")
    auth: str = Field(
        TOKEN,
        pattern="^(disabled|token)$",
        description="who may use the cluster: holders of the token in ~/.ray/auth_token, or all who reach its ports, "
        "which Ray opens on every network of the machine",
    )
    start_timeout_s: float = Field(60.0, gt=0, description="longest wait for a running cluster to answer")


@dataclass(frozen=True)
class Session:
    """A connected cluster and store."""

    store: ArtifactStore
    dashboard: str | None


def worker_environment(
    store: Mapping[str, str], config: ClusterConfig, proxy_middlewares: str | None = None
) -> dict[str, str]:
    """Return the environment variables that every process of the cluster needs.

    Args:
        store: The variables that give access to the embedded store; none for another store.
        config: The cluster.
        proxy_middlewares: ``module:function`` that returns the ASGI middlewares of Serve's HTTP servers. Only a local
            cluster gets it, whose nodes are known to have the code: elsewhere Serve's proxy would not start without it.
    """
    callback = {} if proxy_middlewares is None or config.address != LOCAL else {PROXY_CALLBACK: proxy_middlewares}
    return {
        **store,
        "RAY_AUTH_MODE": config.auth,
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
        # Tune would take Ctrl-C for itself and let the run go on with the trials it has.
        "TUNE_DISABLE_SIGINT_HANDLER": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")])),
        **({} if _may_have_gpus(config) else {"DS_ACCELERATOR": "cpu"}),
        **callback,
    }


def _may_have_gpus(config: ClusterConfig) -> bool:
    if config.address != LOCAL:
        return True
    return any(DEVICES.glob("nvidia[0-9]*")) if config.num_gpus is None else config.num_gpus > 0


@contextmanager
def _exported(variables: Mapping[str, str]) -> Iterator[None]:
    """Set variables of this process's environment, and put back what was there."""
    before = {name: os.environ.get(name) for name in variables}
    _set(variables)
    try:
        yield
    finally:
        _set(before)


@contextmanager
def _ray_environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set variables as ``_exported`` does, and have Ray read its own anew, on the way in and on the way out."""
    try:
        with _exported(variables):
            RayEnvironment.initialize("")
            yield
    finally:
        RayEnvironment.initialize("")


def _set(variables: Mapping[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@contextmanager
def connect(cluster: ClusterConfig, store: StoreConfig, proxy_middlewares: str | None = None) -> Iterator[Session]:
    """Open the store and the cluster; close what this call opened, Ray first, then the embedded store server.

    A process that is connected to Ray already keeps that connection, and it stays open.

    Raises:
        ClusterError: the store or the cluster cannot be used; the message names the setting and the fix.
    """
    cluster = resolve_address(cluster)
    with open_store(store) as (artifacts, environment):
        artifacts.check()
        artifacts.probe_conditional_writes()
        with connect_ray(cluster, worker_environment(environment, cluster, proxy_middlewares)) as dashboard:
            if environment:
                _require_one_host()
            yield Session(artifacts, dashboard)


def resolve_address(cluster: ClusterConfig) -> ClusterConfig:
    """Return the config as it holds here: a job that was submitted to a cluster runs on it, and starts none inside."""
    if cluster.address == LOCAL and submission() is not None:
        return cluster.model_copy(update={"address": AUTO})
    return cluster


@contextmanager
def open_store(store: StoreConfig) -> Iterator[tuple[ArtifactStore, dict[str, str]]]:
    """Start the embedded store's server if it is meant.

    Yields:
        The store, and the variables that let other processes use the embedded server; none for another store.

    Raises:
        ClusterError: The embedded server cannot be used here.
    """
    if store.endpoint is not None:
        yield ArtifactStore(store), {}
        return
    _require_no_ray()
    _require_lasting_data(store)
    with serve_store(store.data_dir) as server:
        environment = server.environment(store.region)
        with _exported(environment):
            artifacts = ArtifactStore(store.model_copy(update={"endpoint": server.endpoint}))
            artifacts.ensure_bucket()
            yield artifacts, environment


def _require_no_ray() -> None:
    """Refuse to start the embedded store under a Ray whose workers could not have its credentials any more."""
    if ray.is_initialized():
        raise ClusterError(
            "this process is connected to Ray already, so its workers cannot get the embedded store's credentials",
            field="store.endpoint",
            fix="call ray.shutdown() first, or name the endpoint of a store that is up",
        )


def _require_lasting_data(store: StoreConfig) -> None:
    """Refuse to keep artifacts in a submitted job's working folder, which Ray deletes when it is no longer used."""
    if submission() is not None and not store.data_dir.is_absolute():
        raise ClusterError(
            f"{store.data_dir} lies in the submitted job's working folder, which Ray deletes when the job is over",
            field="store.data_dir",
            fix="name the endpoint of a store that is up, or give store.data_dir an absolute path",
        )


def _require_one_host() -> None:
    """Refuse the embedded store, which answers on loopback alone, under a cluster of several machines."""
    hosts = {node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    if len(hosts) > 1:
        raise ClusterError(
            f"the embedded store answers on this machine alone, and the cluster has {len(hosts)}",
            field="store.endpoint",
            fix="name the endpoint of a store that all of them reach",
        )


@contextmanager
def connect_ray(config: ClusterConfig, environment: Mapping[str, str]) -> Iterator[str | None]:
    """Start or join a cluster whose processes have these variables; yield its dashboard's URL if it has one.

    Raises:
        ClusterUnreachable: It does not start, or does not answer in time.
        WrongToken: It asks for another token.
    """
    if ray.is_initialized():
        yield None
        return
    # A local cluster's processes inherit this one's environment. A runtime_env would do as well, but Ray writes it,
    # the store's secret key with it, into logs that every user of the machine can read.
    mine = ("RAY_", "DS_", "TUNE_")
    job = submission()
    if job is not None:
        # What both set, even to one value, Ray takes for a conflict.
        environment = {n: v for n, v in environment.items() if n not in (*job.variables, *CLUSTER_PROVIDED_VARIABLES)}
    exported = {n: v for n, v in environment.items() if config.address == LOCAL or n.startswith(mine)}
    with _ray_environment(exported):
        # A submitted job has its address from the cluster that runs it.
        if config.address != LOCAL and not (job is not None and config.address == AUTO):
            _check_reachable(config)
        try:
            yield _start(config) if config.address == LOCAL else _join(config, environment)
        finally:
            _leave()


def _leave() -> None:
    """Leave the cluster, and the threads of Ray Data that a stop has left behind without a cluster or a voice."""
    # They would join or start a cluster anew. The variable for this, RAY_ENABLE_AUTO_CONNECT, is read once, when ray is
    # imported.
    auto_init_hook.enable_auto_connect = False
    # They would say that Ray has not been started, below the line that tells why the job ended.
    set_ray_data_console_level(logging.CRITICAL + 1)
    ray.shutdown()


def _start(config: ClusterConfig) -> str | None:
    """Start a local cluster, and return its dashboard's URL if there is one."""
    if config.auth == TOKEN:
        _keep_token_private()
    try:
        return _init(
            address=LOCAL,
            num_cpus=config.num_cpus,
            num_gpus=config.num_gpus,
            object_store_memory=config.object_store_mb * 2**20,
            include_dashboard=config.dashboard,
            dashboard_host="127.0.0.1",
        )
    except (ConnectionError, TimeoutError, RuntimeError) as error:
        raise ClusterUnreachable(
            f"a local cluster does not start: {error}", field="cluster.address", fix="read the logs in /tmp/ray"
        ) from error


def _keep_token_private() -> None:
    """Make the user's token before Ray does: Ray would let every user of the machine read it."""
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return
    path = Path.home() / ".ray" / "auth_token"
    path.parent.mkdir(exist_ok=True)
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        path.chmod(0o600)
        return
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(secrets.token_hex(32))


def _join(config: ClusterConfig, environment: Mapping[str, str]) -> str | None:
    """Connect to a running cluster, and return its dashboard's URL if there is one."""
    try:
        return _init(address=config.address, runtime_env={"env_vars": dict(environment)})
    except (ConnectionError, TimeoutError, RuntimeError, ray.exceptions.AuthenticationError) as error:
        raise _unreachable(f"no Ray cluster answers: {error}") from error


def _init(**settings: object) -> str | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        context = ray.init(logging_level=logging.ERROR, log_to_driver=False, **settings)
    return f"http://{context.dashboard_url}" if context.dashboard_url else None


def _check_reachable(config: ClusterConfig) -> None:
    """Fail within the time limit when no head node answers at the address.

    ``ray.init`` waits for minutes, or ends the process, when what listens there is not a head node, so another
    process tries it first; it inherits this one's authentication mode.
    """
    deadline = time.monotonic() + config.start_timeout_s
    if config.address != AUTO:
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
        last = "".join(error.stderr.decode(errors="replace").strip().splitlines()[-1:])
        if last == "AuthenticationError":
            raise WrongToken(
                f"the cluster at {config.address!r} refuses this user's token",
                field="cluster.auth",
                fix="set it to 'token', and give the cluster's own in RAY_AUTH_TOKEN or ~/.ray/auth_token",
            ) from None
        raise _unreachable(f"no Ray head node answers at {config.address!r}: {last}") from None


def _unreachable(message: str) -> ClusterUnreachable:
    return ClusterUnreachable(message, field="cluster.address", fix=f"check that it is up, {START_ONE}, or use 'local'")
