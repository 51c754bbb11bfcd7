"""A run's id is held by one live process."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from cluster import lease as lease_module
from cluster.errors import RunLocked, StoreUnreachable
from cluster.hashing import canonical_json
from cluster.lease import Holder, lease
from cluster.store.artifacts import ArtifactStore

KEY = "leases/demo.json"


@pytest.fixture
def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def hold(store: ArtifactStore, host: str, pid: int, *, boot_id: str | None = None, process_started: str = "1") -> None:
    now = time.time()
    holder = Holder(
        host, pid, "someone", now, now, lease_module._boot_id() if boot_id is None else boot_id, process_started
    )
    store.write(KEY, canonical_json(holder._asdict()))


@pytest.fixture
def short_life(monkeypatch: pytest.MonkeyPatch) -> float:
    """Make leases stale soon; a store reports ages in whole seconds."""
    monkeypatch.setattr(lease_module, "STALE_S", 2.0)
    return 3.1


def test_a_second_live_run_is_refused_by_name_and_the_first_lets_go(store: ArtifactStore) -> None:
    with lease(store, "demo"):
        with pytest.raises(RunLocked, match=rf"'demo' is running in process {os.getpid()} on {socket.gethostname()}"):
            with lease(store, "demo"):
                pytest.fail("two runs hold one id")
        with lease(store, "other"):
            pass
        assert store.keys("leases/") == [KEY]
    assert store.keys("leases/") == []
    with lease(store, "demo"):
        pass


def test_a_dead_process_s_lease_is_taken_over(store: ArtifactStore, dead_pid: int) -> None:
    hold(store, socket.gethostname(), dead_pid)
    with lease(store, "demo"):
        assert f'"pid":{os.getpid()}'.encode() in (store.read(KEY) or b"")


def test_a_pid_that_was_used_again_holds_nothing(store: ArtifactStore) -> None:
    hold(store, socket.gethostname(), os.getpid(), process_started="1")
    with lease(store, "demo"):
        pass


def test_a_killed_run_s_lease_is_taken_over_at_once(store: ArtifactStore) -> None:
    code = """
import sys, time
from cluster.lease import lease
from cluster.store.config import StoreConfig
from cluster.store.objects import ObjectStore
with lease(ObjectStore(StoreConfig.model_validate_json(sys.argv[1])), "demo"):
    print("held", flush=True)
    time.sleep(60)
"""
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", code, store.config.model_dump_json()]
    other = subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    with pytest.raises(RunLocked, match=f"in process {other.pid} on"), lease(store, "demo"):
        pytest.fail("two runs hold one id")
    other.kill()
    other.communicate()
    with lease(store, "demo"):
        pass


def test_another_machine_s_lease_holds_while_its_heart_beats(
    store: ArtifactStore, dead_pid: int, short_life: float
) -> None:
    """The name of the machine and its clock may be anything: neither decides."""
    hold(store, socket.gethostname(), dead_pid, boot_id="another boot")
    with pytest.raises(RunLocked, match=f"process {dead_pid} on {socket.gethostname()} since"), lease(store, "demo"):
        pytest.fail("a live lease was taken")
    time.sleep(short_life)
    with lease(store, "demo"):
        assert b"another boot" not in (store.read(KEY) or b"")


@pytest.mark.parametrize("data", [b"", b"not json", b"[]", b'{"host":"x"}'])
def test_a_lease_that_cannot_be_read_holds_nothing(store: ArtifactStore, data: bytes) -> None:
    store.write(KEY, data)
    with lease(store, "demo"):
        pass
    assert store.read(KEY) is None


@pytest.mark.parametrize("stale", [False, True])
def test_one_of_eight_that_start_together_wins(store: ArtifactStore, dead_pid: int, stale: bool) -> None:
    if stale:
        hold(store, socket.gethostname(), dead_pid)
    barrier, outcomes = threading.Barrier(8), list[str]()

    def start() -> None:
        barrier.wait()
        with ExitStack() as stack:
            try:
                stack.enter_context(lease(store, "demo"))
                outcomes.append("won")
            except RunLocked:
                outcomes.append("refused")
            barrier.wait()

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["refused"] * 7 + ["won"]


@pytest.fixture
def fast_heart(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(lease_module, "HEARTBEAT_S", 0.05)
    return


def wait_for(condition: object) -> bool:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if condition():  # type: ignore[operator]
            return True
        time.sleep(0.02)
    return False


def test_the_heart_beats_and_stops_when_the_lease_is_someone_else_s(store: ArtifactStore, fast_heart: None) -> None:
    with lease(store, "demo"):
        first = store.read(KEY)
        assert wait_for(lambda: store.read(KEY) != first)
        hold(store, "elsewhere", 1, boot_id="another boot")
        theirs = store.read(KEY)
        time.sleep(0.3)
        assert store.read(KEY) == theirs
    assert store.read(KEY) == theirs, "a lease that was taken over is not the first holder's to give back"


def test_a_store_that_is_gone_at_the_end_does_not_hide_why_the_run_failed(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(key: str) -> None:
        raise StoreUnreachable("gone", field="store.endpoint", fix="start it")

    with pytest.raises(ZeroDivisionError), lease(store, "demo"):
        monkeypatch.setattr(store, "read_versioned", unreachable)
        raise ZeroDivisionError
