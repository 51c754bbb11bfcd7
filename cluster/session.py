"""Connections to Ray (a local cluster or an existing one) and to the store, and their end."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import ray
from pydantic import Field

from cluster.base import Config
from cluster.errors import ClusterError, ClusterUnreachable, WrongToken
from cluster.loopback import exempted_loopback
from cluster.node_types import NodeType, declare_node_types
from cluster.progress import set_ray_data_console_level
from cluster.ray_private import UV_HOOK, end_data_streams, forbid_auto_connect, reread_environment
from cluster.shared_folder import require_shared_folder
from cluster.store.artifacts import ArtifactStore
from cluster.store.config import StoreConfig
from cluster.submission import submission

LOGGER = logging.getLogger(__name__)
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
    text = f"{type(error).__name__}: {error}"
    # Ray reports that it cannot connect, with the cause as a wrapped error.
    refused = "AuthenticationError" in f"{text} {error.__cause__}"
    sys.exit("AuthenticationError" if refused else " ".join(text.split()))
"""
CLUSTER_PROVIDED_VARIABLES = ("RAY_AUTH_MODE", "PYTHONPATH")
"""Variables that a submitted job gets from its cluster: authentication, and the folder of the code on each node."""


class ClusterConfig(Config):
    """The Ray cluster that a run uses."""

    address: str = Field(
        LOCAL,
        description="'local' starts one; 'auto' or host:port joins a running one. A submitted job always runs on the "
        "cluster that it was submitted to",
    )
    num_cpus: int | None = Field(None, ge=1, description="of a local cluster; None: all of the machine's")
    num_gpus: int | None = Field(None, ge=0, description="of a local cluster; None: all of the machine's")
    object_store_mb: int = Field(512, ge=100, description="of a local cluster")
    dashboard: bool = Field(True, description="serve Ray's dashboard on loopback")
    auth: str = Field(
        TOKEN,
        pattern="^(disabled|token)$",
        description="'token': only holders of the token in ~/.ray/auth_token may use the cluster; 'disabled': all who "
        "reach its ports, which Ray opens on every network of the machine",
    )
    start_timeout_s: float = Field(60.0, gt=0, description="longest wait for a running cluster to answer")
    node_types: tuple[NodeType, ...] = Field(
        (),
        description="kinds of nodes that a running cluster's autoscaler adds when they are needed; what fits one of them "
        "is not refused although no such node is there yet",
    )


@dataclass(frozen=True)
class Session:
    """A connected cluster and store."""

    store: ArtifactStore
    dashboard: str | None


def worker_environment(config: ClusterConfig, proxy_middlewares: str | None = None) -> dict[str, str]:
    """Return the environment variables that every process of the cluster needs.

    Args:
        config: The cluster.
        proxy_middlewares: ``module:function`` that returns the ASGI middlewares of Serve's HTTP servers. Only a local
            cluster gets it, whose nodes are known to have the code: elsewhere Serve's proxy would not start without it.
    """
    callback = {} if proxy_middlewares is None or config.address != LOCAL else {PROXY_CALLBACK: proxy_middlewares}
    return {
        "RAY_AUTH_MODE": config.auth,
        "RAY_USAGE_STATS_ENABLED": "0",
        # Under "uv run" Ray would upload the folder and give its workers another environment than the driver's.
        UV_HOOK: "0",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
        # An actor per training that announces a node's end. Training goes on from its last checkpoint without notice.
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
        # Tune would take Ctrl-C for itself and let the run go on with the trials it has.
        "TUNE_DISABLE_SIGINT_HANDLER": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")])),
        **({} if _may_have_gpus(config) else {"DS_ACCELERATOR": "cpu"}),
        # A run's drivers, controllers and idle workers outnumber a small machine's CPUs, of which Ray would warn. The
        # nodes of another cluster have their own no_proxy, to which cluster/__init__.py adds there.
        **(
            {"RAY_worker_maximum_startup_concurrency": "16", **exempted_loopback(os.environ)}
            if config.address == LOCAL
            else {}
        ),
        **callback,
    }


def _may_have_gpus(config: ClusterConfig) -> bool:
    if config.address != LOCAL:
        return True
    return any(DEVICES.glob("nvidia[0-9]*")) if config.num_gpus is None else config.num_gpus > 0


@contextmanager
def _exported(variables: Mapping[str, str]) -> Iterator[None]:
    """Set variables of this process's environment for the block, then restore the old values."""
    before = {name: os.environ.get(name) for name in variables}
    _set(variables)
    try:
        yield
    finally:
        _set(before)


@contextmanager
def _ray_environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set variables as ``_exported`` does, and make Ray read its own ones again, before the block and after it."""
    try:
        with _exported(variables):
            reread_environment()
            yield
    finally:
        reread_environment()


def _set(variables: Mapping[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@contextmanager
def connect(
    cluster: ClusterConfig, store: StoreConfig, proxy_middlewares: str | None = None, *, publishes: bool = True
) -> Iterator[Session]:
    """Open the store and the cluster; at the end leave the cluster, or end one that this call started.

    A process that is already connected to Ray keeps that connection, and it stays open.

    Args:
        cluster: The cluster to start or join.
        store: The artifact store.
        proxy_middlewares: See ``worker_environment``.
        publishes: Whether artifacts will be written, for which the store is tried first; reading tries itself.

    Raises:
        ClusterError: the store or the cluster cannot be used; the message names the setting and the fix.
    """
    cluster = resolve_address(cluster)
    artifacts = open_store(store)
    if publishes:
        artifacts.check()
        artifacts.probe_conditional_writes()
    # The processes of a cluster that starts here are this machine's and this user's.
    foreign = cluster.address != LOCAL or ray.is_initialized()
    with connect_ray(cluster, worker_environment(cluster, proxy_middlewares)) as dashboard:
        if foreign:
            require_shared_folder(artifacts)
        yield Session(artifacts, dashboard)


def resolve_address(cluster: ClusterConfig) -> ClusterConfig:
    """Return the config in force: a job that was submitted to a cluster joins it instead of starting another."""
    if cluster.address == LOCAL and submission() is not None:
        return cluster.model_copy(update={"address": AUTO})
    return cluster


def open_store(store: StoreConfig) -> ArtifactStore:
    """Return the store of a config.

    Raises:
        ClusterError: It would be deleted with a submitted job's working folder.
    """
    if store.endpoint is None and submission() is not None and not store.data_dir.is_absolute():
        raise ClusterError(
            f"{store.data_dir} lies in the submitted job's working folder, which Ray deletes when the job is over",
            field="store.data_dir",
            fix="name an S3 store in store.endpoint, or give store.data_dir an absolute path that all nodes share",
        )
    return ArtifactStore(store)


@contextmanager
def connect_ray(config: ClusterConfig, environment: Mapping[str, str]) -> Iterator[str | None]:
    """Start or join a cluster whose processes have these variables; yield its dashboard's URL, or None without one.

    Raises:
        ClusterUnreachable: It does not start, or does not answer in time.
        WrongToken: It requires another token.
    """
    # A cluster that starts here adds no node.
    declare_node_types(() if config.address == LOCAL else config.node_types)
    if ray.is_initialized():
        yield None
        return
    # A local cluster's processes inherit this one's environment, the S3 credentials in it too. A runtime_env would work,
    # but Ray writes it into logs that every user of the machine can read.
    prefixes = ("RAY_", "DS_", "TUNE_")
    job = submission()
    if job is not None:
        # Ray treats a variable that both set as a conflict, even with equal values.
        environment = {n: v for n, v in environment.items() if n not in (*job.variables, *CLUSTER_PROVIDED_VARIABLES)}
    exported = {n: v for n, v in environment.items() if config.address == LOCAL or n.startswith(prefixes)}
    if config.address == LOCAL and config.auth == TOKEN:
        exported |= _keep_token_private()
    with _ray_environment(exported):
        # A submitted job gets its address from its cluster.
        if config.address != LOCAL and not (job is not None and config.address == AUTO):
            _check_reachable(config)
        try:
            yield _start(config) if config.address == LOCAL else _join(config, environment)
        finally:
            _leave()


def _leave() -> None:
    """Disconnect, so that threads of Ray Data that a stop left behind neither call Ray, nor connect again, nor print."""
    # They would print that Ray has not been started, below the line that gives the reason for the job's end.
    set_ray_data_console_level(logging.CRITICAL + 1)
    end_data_streams()
    forbid_auto_connect()
    ray.shutdown()


def _start(config: ClusterConfig) -> str | None:
    """Start a local cluster; return its dashboard's URL, or None without one."""
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


def _keep_token_private() -> dict[str, str]:
    """Create the user's token before Ray does: Ray's file would be readable by every user of the machine.

    Returns:
        The variable that names the token's file, where that is not Ray's default: where the home cannot be written,
        it is a temporary one that ends with this process.
    """
    fault = ensure_token()
    if fault is None:
        return {}
    path = _temporary_token()
    LOGGER.warning("%s: this cluster's token is in %s until it ends; others set RAY_AUTH_TOKEN_PATH to it", fault, path)
    return {"RAY_AUTH_TOKEN_PATH": str(path)}


def ensure_token() -> str | None:
    """Make sure that the user's token is in the home folder, for the user alone; return why it cannot be, if so.

    Nothing is done where the user's environment names a token.

    Raises:
        WrongToken: The file that it names cannot be read.
    """
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    if os.environ.get("RAY_AUTH_TOKEN"):
        return None
    if named:
        _require_readable(Path(named))
        return None
    try:
        path = Path.home() / ".ray" / "auth_token"
        path.parent.mkdir(exist_ok=True)
        _write_token(path)
    except FileExistsError:
        return _hide(path)
    except OSError as error:
        return f"{error.filename} cannot be written ({error.strerror})"
    except RuntimeError:  # of Path.home
        return "this user has no home folder"
    return None


def _require_readable(path: Path) -> None:
    if not _is_readable(path):
        raise WrongToken(
            f"RAY_AUTH_TOKEN_PATH names {path}, which cannot be read",
            field="cluster.auth",
            fix="name a file that holds the cluster's token, or unset the variable",
        )


def _write_token(path: Path) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(secrets.token_hex(32))


def _hide(path: Path) -> str | None:
    """Close a token to other users, where that can be done; return why it cannot be used at all, if so."""
    with contextlib.suppress(OSError):  # A home that is mounted read-only, and whose token is good.
        path.chmod(0o600)
    return None if _is_readable(path) else f"{path} cannot be read"


def _is_readable(path: Path) -> bool:
    return path.is_file() and os.access(path, os.R_OK)


@cache
def _temporary_token() -> Path:
    """Write this process's own token; Ray reads it once a process, so it stays the same for all sessions."""
    folder = Path(tempfile.mkdtemp(prefix="safetydpo-token-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    _write_token(folder / "auth_token")
    return folder / "auth_token"


def _join(config: ClusterConfig, environment: Mapping[str, str]) -> str | None:
    """Connect to a running cluster; return its dashboard's URL, or None without one."""
    try:
        dashboard = _init(address=config.address, runtime_env={"env_vars": dict(environment)})
    except (ConnectionError, TimeoutError, RuntimeError, ray.exceptions.AuthenticationError) as error:
        raise _unreachable(f"no Ray cluster answers: {error}") from error
    if dashboard is None:
        # Ray Train's PlacementGroupCleaner asks the dashboard whether a training's controller is alive.
        LOGGER.warning(
            "the cluster at %s has no dashboard: Ray then keeps what a training had reserved when it loses the node that "
            "drives it, and its next try may wait for that in vain. Start the head with --include-dashboard=true",
            config.address,
        )
    return dashboard


def _init(**settings: object) -> str | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        context = ray.init(logging_level=logging.ERROR, log_to_driver=False, **settings)
    return f"http://{context.dashboard_url}" if context.dashboard_url else None


def _check_reachable(config: ClusterConfig) -> None:
    """Fail within the time limit when no head node answers at the address.

    ``ray.init`` waits for minutes, or ends the process, when the listener there is not a head node. So a subprocess,
    which inherits this process's authentication mode, tries it first.
    """
    deadline = time.monotonic() + config.start_timeout_s
    dashboard = os.environ.get("RAY_ADDRESS", "")
    if config.address == AUTO and dashboard.startswith(("http://", "https://")):
        raise ClusterUnreachable(
            f"RAY_ADDRESS is {dashboard!r}, a dashboard: 'ray job submit' takes that, and a driver does not",
            field="cluster.address",
            fix="put it into RAY_API_SERVER_ADDRESS instead, or name the head as HOST:6379 in cluster.address",
        )
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
            f"no Ray head node answers at {config.address!r} within "
            f"cluster.start_timeout_s = {config.start_timeout_s:g}"
        ) from None
    except subprocess.CalledProcessError as error:
        last = "".join(error.stderr.decode(errors="replace").strip().splitlines()[-1:])
        if last == "AuthenticationError":
            raise WrongToken(
                f"the cluster at {config.address!r} refuses this user's token"
                if _has_token()
                else f"this user has no token for the cluster at {config.address!r}",
                field="cluster.auth",
                fix="set it to 'token', and put the cluster's own token in RAY_AUTH_TOKEN or ~/.ray/auth_token",
            ) from None
        raise _unreachable(f"no Ray head node answers at {config.address!r}: {last}") from None


def _has_token() -> bool:
    """Return whether Ray finds a token for this user, good or not."""
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return True
    with contextlib.suppress(RuntimeError):  # of Path.home, where the user has none
        return (Path.home() / ".ray" / "auth_token").is_file()
    return False


def _unreachable(message: str) -> ClusterUnreachable:
    return ClusterUnreachable(
        message, field="cluster.address", fix=f"check that it is running, {START_ONE}, or use 'local'"
    )
