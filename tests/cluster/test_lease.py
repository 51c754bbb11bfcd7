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

import pytest

from cluster import lease as lease_module
from cluster.canonical import canonical_json
from cluster.errors import RunLocked, StoreUnreachable
from cluster.lease import STALE_S, Holder, lease
from cluster.store.artifacts import ArtifactStore

pytestmark = pytest.mark.s3
KEY = "leases/demo.json"


@pytest.fixture
def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def hold(store: ArtifactStore, host: str, pid: int, beat: float) -> None:
    store.write(KEY, canonical_json(Holder(host, pid, "someone", beat, beat)._asdict()))


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
    hold(store, socket.gethostname(), dead_pid, time.time())
    with lease(store, "demo"):
        assert f'"pid":{os.getpid()}'.encode() in (store.read(KEY) or b"")


def test_another_host_s_lease_holds_while_its_heart_beats(store: ArtifactStore, dead_pid: int) -> None:
    hold(store, "elsewhere", dead_pid, time.time() - STALE_S + 30)
    with pytest.raises(RunLocked, match=f"process {dead_pid} on elsewhere"), lease(store, "demo"):
        pytest.fail("a live lease was taken")
    hold(store, "elsewhere", dead_pid, time.time() - STALE_S - 1)
    with lease(store, "demo"):
        assert b"elsewhere" not in (store.read(KEY) or b"")


def test_a_pid_of_another_user_does_not_hold_a_stale_lease_for_ever(store: ArtifactStore) -> None:
    hold(store, socket.gethostname(), 1, time.time() - STALE_S - 1)
    with lease(store, "demo"):
        pass


@pytest.mark.parametrize("data", [b"", b"not json", b"[]", b'{"host":"x"}'])
def test_a_lease_that_cannot_be_read_holds_nothing(store: ArtifactStore, data: bytes) -> None:
    store.write(KEY, data)
    with lease(store, "demo"):
        pass
    assert store.read(KEY) is None


@pytest.mark.parametrize("stale", [False, True])
def test_one_of_eight_that_start_together_wins(store: ArtifactStore, dead_pid: int, stale: bool) -> None:
    if stale:
        hold(store, socket.gethostname(), dead_pid, time.time())
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
        hold(store, "elsewhere", 1, 5.0)
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
