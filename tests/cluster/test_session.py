"""Connecting to Ray and the store: everything opened is closed again, and a missing cluster or store fails in time."""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from cluster import session as session_module
from cluster.errors import ClusterUnreachable, MissingBucket, StoreRefused, StoreUnreachable, WrongToken
from cluster.node_types import NodeType, declare_node_types, node_types
from cluster.session import ClusterConfig, connect, connect_ray, worker_environment
from cluster.store.artifacts import ArtifactStore
from cluster.store.config import StoreConfig

ROOT = Path(__file__).parent.parent.parent
LOCAL = """
import json, logging, os, subprocess, sys, urllib.request
from pathlib import Path
import ray
import ray.data
from cluster.session import ClusterConfig, connect
from cluster.store.artifacts import ArtifactStore
from cluster.store.config import StoreConfig

before, events = dict(os.environ), []

@ray.remote
def work(config):
    ArtifactStore(config).write("from-a-worker", b"1")
    return os.environ["RAY_AUTH_MODE"], os.environ["DS_ACCELERATOR"]

def logs_with(secret):
    folder = Path(ray._private.worker._global_node.get_logs_dir_path())
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 5
    return [path.name for path in files if secret in path.read_bytes()]

def listeners():
    # The command lines of this test's processes, known by their HOME, that listen on a port.
    lines = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()]
    inodes = {line[9] for line in lines if line[3] == "0A"}
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            links = {os.readlink(link) for link in (process / "fd").iterdir()}
            mine = f"HOME={Path(sys.argv[1]).parent}" in (process / "environ").read_text().split(chr(0))
            if mine and links & {f"socket:[{inode}]" for inode in inodes}:
                found.add((process / "cmdline").read_bytes().decode().replace(chr(0), " "))
        except OSError:
            continue
    return found

with connect(ClusterConfig(num_cpus=1, num_gpus=0), StoreConfig(data_dir=Path(sys.argv[1]))) as found:
    logging.getLogger("ray.data.any").error("what a running stream says")
    events.append(ray.get(work.remote(found.store.config)))
    events.append(found.store.keys("from"))
    events.append(urllib.request.urlopen(found.dashboard, timeout=30).status)
    events.append(found.dashboard)
    address = ray.get_runtime_context().gcs_address
    join = subprocess.run([sys.executable, "-c", sys.argv[2], address, found.store.config.model_dump_json()],
                          capture_output=True, text=True)
    events.append(join.stdout.strip() or join.stderr[-2000:])
    events.append(ray.get(work.remote(found.store.config))[0])
    events.append(logs_with(os.environ["AWS_SECRET_ACCESS_KEY"].encode()))
    assert any("raylet" in name for name in listeners())
    events.append([name for name in listeners() if "ray" not in name.lower() and "-c" not in name.split()])
    events.append((Path.home() / ".ray" / "auth_token").stat().st_mode & 0o777)
events.append(ray.is_initialized())
logging.getLogger("ray.data.any").error("what a thread of a stopped stream says")
changed = {k for k in before.keys() | os.environ.keys() if before.get(k) != os.environ.get(k)}
events.append(sorted(k for k in changed if k.startswith(("AWS_", "RAY_AUTH", "RAY_TRAIN", "DS_"))))
print(json.dumps(events))
"""
JOIN = """
import os, sys
import ray
from cluster.session import ClusterConfig, connect
from cluster.store.config import StoreConfig

@ray.remote
def double(x):
    return 2 * x

store = StoreConfig.model_validate_json(sys.argv[2])
with connect(ClusterConfig(address=sys.argv[1], start_timeout_s=120.0), store) as found:
    print("joined", ray.get(double.remote(21)), len(ray.nodes()), found.dashboard is not None)
"""


@pytest.mark.ray
@pytest.mark.slow
def test_a_local_session_and_one_that_joins_it(tmp_path: Path) -> None:
    command = [sys.executable, "-c", LOCAL, str(tmp_path / "store"), JOIN]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "RAY_", "DS_"))}
    environment |= {
        "PYTHONPATH": str(ROOT),
        "HOME": str(tmp_path),
        "AWS_SECRET_ACCESS_KEY": "the-user-s-own-secret-key",
    }
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    events = json.loads(done.stdout.splitlines()[-1])
    assert events[:3] == [["token", "cpu"], ["from-a-worker"], 200]
    assert events[3].startswith("http://127.0.0.1:")
    assert events[4:6] == ["joined 42 1 True", "token"]
    assert events[6:9] == [[], [], 0o600], "no log shows an S3 key, no port but Ray's is open, the token is the user's"
    assert events[9:] == [False, []]
    assert (tmp_path / "store" / "objects" / "from-a-worker").read_bytes() == b"1"
    assert "a running stream says" in done.stderr
    assert "a stopped stream says" not in done.stderr


@pytest.fixture
def not_connected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the test session's Ray, and give the user a token, without which no cluster is asked."""
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 64)
    monkeypatch.setattr(session_module.ray, "is_initialized", lambda: False)


def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def fails_in_time(address: str, store: StoreConfig, match: str) -> ClusterUnreachable:
    started = time.monotonic()
    with pytest.raises(ClusterUnreachable, match=match) as caught:
        with connect(ClusterConfig(address=address, start_timeout_s=3.0), store):
            pytest.fail("it connected")
    assert time.monotonic() - started < 20
    assert caught.value.field == "cluster.address"
    assert "ray start --head" in caught.value.fix
    return caught.value


@pytest.mark.parametrize("address", ["nonsense", "127.0.0.1:port", "127.0.0.1:99999", "no-such-host.invalid:6379", ""])
def test_an_address_where_nothing_can_be_is_reported(store: ArtifactStore, not_connected: None, address: str) -> None:
    fails_in_time(address, store.config, "nothing answers")


def test_an_address_where_nobody_listens_is_reported(store: ArtifactStore, not_connected: None) -> None:
    address = f"127.0.0.1:{unused_port()}"
    fails_in_time(address, store.config, f"nothing answers at '{address}'")


def test_something_else_at_the_address_is_reported_in_time(store: ArtifactStore, not_connected: None) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        fails_in_time(address, store.config, f"no Ray head node answers at '{address}'")


def test_a_cluster_that_was_announced_and_is_gone_is_reported_in_time(
    store: ArtifactStore, not_connected: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{unused_port()}")
    fails_in_time("auto", store.config, "no Ray head node answers at 'auto'")


def test_who_has_no_token_is_told_so(
    not_connected: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, store: ArtifactStore
) -> None:
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.setenv("HOME", str(tmp_path))
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(WrongToken, match="this user has no token"):
        with connect(ClusterConfig(address=f"127.0.0.1:{silent.getsockname()[1]}", start_timeout_s=3.0), store.config):
            pytest.fail("it connected")


def test_a_dashboards_address_for_a_driver_is_reported_with_the_variable_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:8265")
    with pytest.raises(ClusterUnreachable, match=r"RAY_ADDRESS is 'http.*RAY_API_SERVER_ADDRESS"):
        session_module._check_reachable(ClusterConfig(address="auto"))


def test_a_store_that_cannot_be_used_is_reported_before_ray_is_started(
    s3_store: ArtifactStore, not_connected: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(*_: Any, **__: Any) -> None:
        pytest.fail("Ray was started")

    monkeypatch.setattr(session_module.ray, "init", start)
    missing = s3_store.config.model_copy(update={"bucket": "not-there"})
    nowhere = s3_store.config.model_copy(update={"endpoint": f"http://127.0.0.1:{unused_port()}", "patience_s": 1.0})
    forbidden = StoreConfig(data_dir=Path("/proc/sys/store"))
    for config, kind in ((missing, MissingBucket), (nowhere, StoreUnreachable), (forbidden, StoreRefused)):
        with pytest.raises(kind), connect(ClusterConfig(), config):
            pytest.fail("it connected")
    assert "not-there" not in {bucket["Name"] for bucket in s3_store.objects._client.list_buckets()["Buckets"]}


@pytest.mark.ray
def test_a_ray_that_is_connected_already_is_used_and_left(ray_cluster: None, store: ArtifactStore) -> None:
    with connect(ClusterConfig(), store.config) as found:
        assert found.store.config == store.config
        assert ray.is_initialized()
    assert ray.is_initialized()


def test_who_connects_names_the_nodes_that_can_be_added_but_to_a_local_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """The preflight connects without ``connect``, and must refuse what a run refuses and nothing else."""
    monkeypatch.setattr(session_module.ray, "is_initialized", lambda: True)
    kind = NodeType(resources={"GPU": 1.0}, max_nodes=2)
    try:
        with connect_ray(ClusterConfig(address="auto", node_types=(kind,)), {}):
            assert node_types() == (kind,)
        monkeypatch.setattr("cluster.node_types.reported_node_types", list)
        with connect_ray(ClusterConfig(node_types=(kind,)), {}):
            assert node_types() == ()
    finally:
        declare_node_types(())


def test_workers_get_what_they_need(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/mine")
    found = worker_environment(ClusterConfig(num_gpus=0))
    assert found["RAY_AUTH_MODE"] == "token"
    assert found["RAY_USAGE_STATS_ENABLED"] == "0"
    assert found["PYTHONPATH"].split(os.pathsep) == [str(ROOT), "/mine"]
    assert found["DS_ACCELERATOR"] == "cpu"
    assert "DS_ACCELERATOR" not in worker_environment(ClusterConfig(num_gpus=1))
    assert "DS_ACCELERATOR" not in worker_environment(ClusterConfig(address="auto"))
    assert worker_environment(ClusterConfig(auth="disabled"))["RAY_AUTH_MODE"] == "disabled"


@pytest.mark.parametrize(("devices", "accelerator"), [(["nvidia0", "nvidiactl"], None), (["null"], "cpu")])
def test_deepspeed_looks_for_gpus_only_where_there_are_some(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, devices: list[str], accelerator: str | None
) -> None:
    for name in devices:
        (tmp_path / name).touch()
    monkeypatch.setattr(session_module, "DEVICES", tmp_path)
    assert worker_environment(ClusterConfig()).get("DS_ACCELERATOR") == accelerator


def test_variables_are_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEPT", "before")
    monkeypatch.delenv("NEW", raising=False)
    with pytest.raises(ZeroDivisionError), session_module._exported({"KEPT": "within", "NEW": "1"}):
        assert (os.environ["KEPT"], os.environ["NEW"]) == ("within", "1")
        raise ZeroDivisionError
    assert os.environ["KEPT"] == "before"
    assert "NEW" not in os.environ


def test_a_token_is_made_for_its_user_alone_and_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    token = tmp_path / ".ray" / "auth_token"
    session_module._keep_token_private()
    made = token.read_text()
    assert len(made) == 64
    token.chmod(0o644)
    session_module._keep_token_private()
    assert token.read_text() == made
    assert token.stat().st_mode & 0o777 == 0o600
    token.unlink()
    monkeypatch.setenv("RAY_AUTH_TOKEN", "the user's own")
    session_module._keep_token_private()
    assert not token.exists()


@pytest.fixture
def no_token(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Name no token in the environment, and forget this process's own."""
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    session_module._temporary_token.cache_clear()
    yield
    session_module._temporary_token.cache_clear()


@pytest.mark.parametrize("home", ["/proc/sys", "/not/there", "a-file", "its-ray-is-a-file", "unreadable", None])
def test_a_home_that_cannot_be_written_costs_no_more_than_a_token_of_its_own(
    home: str | None, no_token: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a-file").touch()
    (tmp_path / "its-ray-is-a-file").mkdir()
    (tmp_path / "its-ray-is-a-file" / ".ray").touch()
    # A folder in the token's place, since root may read whatever the modes say.
    (tmp_path / "unreadable" / ".ray" / "auth_token").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path / (home or "")))
    if home is None:  # docker run --user 1000: no HOME, and no such user

        def no_home() -> Path:
            raise RuntimeError("Could not determine home directory.")

        monkeypatch.setattr(session_module.Path, "home", no_home)
    monkeypatch.setattr(session_module.tempfile, "tempdir", str(tmp_path))
    found = session_module._keep_token_private()
    token = Path(found["RAY_AUTH_TOKEN_PATH"])
    assert token.is_relative_to(tmp_path)
    assert (len(token.read_text()), token.stat().st_mode & 0o777) == (64, 0o600)
    assert session_module._keep_token_private() == found, "Ray reads a token once a process"
    assert f"token is in {token}" in caplog.text
    assert token.read_text() not in caplog.text


def test_a_good_token_in_a_home_that_cannot_be_written_is_used(
    no_token: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert session_module._keep_token_private() == {}

    def read_only(*_: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(session_module.Path, "chmod", read_only)
    assert session_module._keep_token_private() == {}


def test_a_token_that_the_environment_names_and_that_is_not_there_is_a_known_error(
    no_token: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(WrongToken, match=r"cluster.auth: RAY_AUTH_TOKEN_PATH names .*/none, which cannot be read"):
        session_module._keep_token_private()
