"""A run's id is held by one live process."""

from __future__ import annotations

import json
import os
import signal
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
from cluster.errors import ClusterError, LeaseLost, RunLocked, StoreUnreachable
from cluster.hashing import canonical_json
from cluster.lease import Holder, lease
from cluster.store.artifacts import ArtifactStore
from cluster.store.objects import LostRace

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
from cluster.store.artifacts import ArtifactStore
with lease(ArtifactStore(StoreConfig.model_validate_json(sys.argv[1])), "demo"):
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
    any_store: ArtifactStore, dead_pid: int, short_life: float
) -> None:
    """The name of the machine and its clock may be anything: neither decides."""
    store = any_store
    hold(store, socket.gethostname(), dead_pid, boot_id="another boot")
    with pytest.raises(RunLocked, match=f"process {dead_pid} on {socket.gethostname()} since"), lease(store, "demo"):
        pytest.fail("a live lease was taken")
    time.sleep(short_life)
    with lease(store, "demo"):
        assert b"another boot" not in (store.read(KEY) or b"")


GOOD = {
    "host": "elsewhere",
    "pid": 1,
    "token": "someone",
    "since": 1.0,
    "last_heartbeat": 1.0,
    "boot_id": "another boot",
    "process_started": "1",
}
BAD_FIELDS: list[tuple[str, object]] = [
    *[("since", value) for value in ("yesterday", None, [], {}, True, -1.0, 1e300, "1.0")],
    *[("last_heartbeat", value) for value in ("x", None)],
    *[("pid", value) for value in ("1", 0, -1, 2**80, 1.5, None, True)],
    *[(name, value) for name in ("host", "token", "boot_id", "process_started") for value in (1, None, ["x"])],
    *[("host", value) for value in ("x\x1b[2Jx", "x" * 10_000)],
]


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b"not json", b"[]", b"null", b"\xff", b'{"host":"x"}', b'{"since": 1}', b"x" * 70_000),
        json.dumps({**GOOD, "surprise": 1}).encode(),
        json.dumps(GOOD).replace("1.0", "NaN").encode(),
        json.dumps(GOOD).replace("1.0", "1e999").encode(),
        *[json.dumps({**GOOD, name: value}).encode() for name, value in BAD_FIELDS],
    ],
)
def test_a_lease_that_cannot_be_read_locks_the_run(store: ArtifactStore, data: bytes) -> None:
    """Whose run it is cannot be known: a live one may be behind it."""
    store.write(KEY, data)
    with pytest.raises(RunLocked, match=rf"the lease of 'demo' cannot be read: .*delete {store.url(KEY)}"):
        with lease(store, "demo"):
            pytest.fail("a run was started")
    store.delete(KEY)
    with lease(store, "demo"):
        pass


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


def test_the_heart_beats(store: ArtifactStore, fast_heart: None) -> None:
    with lease(store, "demo"):
        first = store.read(KEY)
        assert wait_for(lambda: store.read(KEY) != first)
    assert store.read(KEY) is None


def take_over(store: ArtifactStore) -> None:
    hold(store, "elsewhere", 1, boot_id="another boot")


LOSSES = {
    "taken over": (take_over, "taken over by process 1 on elsewhere"),
    "deleted": (lambda store: store.delete(KEY), "its lease was deleted"),
    "overwritten": (lambda store: store.write(KEY, b"garbage"), "cannot be read"),
}


@pytest.mark.parametrize("loss", LOSSES)
def test_a_run_that_lost_its_lease_stops_soon(store: ArtifactStore, fast_heart: None, loss: str) -> None:
    """The signal wakes the main thread from a wait; what is in the store then is not this run's to touch."""
    lose, why = LOSSES[loss]
    handler, cleaned_up = signal.getsignal(signal.SIGUSR1), False
    started = time.monotonic()
    with pytest.raises(LeaseLost, match=why) as caught, lease(store, "demo"):
        try:
            lose(store)
            theirs = store.read(KEY)
            time.sleep(30)
            pytest.fail("the run went on")
        finally:
            cleaned_up = True
    assert time.monotonic() - started < 10
    assert cleaned_up
    assert caught.value.field == "run.name"
    assert isinstance(caught.value.__cause__, KeyboardInterrupt)
    assert store.read(KEY) == theirs, "a lease that was taken over is not the first holder's to give back"
    assert signal.getsignal(signal.SIGUSR1) is handler


@pytest.mark.ray
def test_a_wait_for_ray_ends_too(ray_cluster: None, store: ArtifactStore, fast_heart: None) -> None:
    import ray

    @ray.remote(num_cpus=0)
    def wait() -> None:
        time.sleep(60)

    started = time.monotonic()
    reference = wait.remote()
    with pytest.raises(LeaseLost), lease(store, "demo"):
        take_over(store)
        ray.get(reference)
    assert time.monotonic() - started < 20
    ray.cancel(reference, force=True)


def test_a_stop_by_the_user_stays_one(store: ArtifactStore, fast_heart: None) -> None:
    with pytest.raises(KeyboardInterrupt), lease(store, "demo"):
        raise KeyboardInterrupt
    assert store.read(KEY) is None


def test_a_lease_held_by_another_thread_ends_in_the_same_error(store: ArtifactStore, fast_heart: None) -> None:
    outcomes: list[BaseException] = []

    def run() -> None:
        try:
            with lease(store, "demo"):
                take_over(store)
                time.sleep(0.5)
        except ClusterError as error:
            outcomes.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert [type(outcome) for outcome in outcomes] == [LeaseLost]


def test_a_heartbeat_whose_answer_was_lost_is_no_loss(
    store: ArtifactStore, fast_heart: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, beats = store.write, list[bytes]()

    def write(key: str, data: bytes, *, if_absent: bool = False, if_match: str | None = None) -> None:
        """Write, and answer as the second try of a write whose first answer was lost."""
        real(key, data, if_absent=if_absent, if_match=if_match)
        beats.append(data)
        raise LostRace("412")

    with lease(store, "demo"):
        monkeypatch.setattr(store, "write", write)
        assert wait_for(lambda: len(beats) > 3)
        monkeypatch.undo()


def test_a_store_that_is_away_for_a_while_is_no_loss(
    store: ArtifactStore, fast_heart: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def away(key: str) -> None:
        asked.append(key)
        raise StoreUnreachable("away", field="store.endpoint", fix="wait")

    with lease(store, "demo"):
        monkeypatch.setattr(store, "read_versioned", away)
        assert wait_for(lambda: len(asked) > 2)
        monkeypatch.undo()
        monkeypatch.setattr(lease_module, "HEARTBEAT_S", 0.05)
        first = store.read(KEY)
        assert wait_for(lambda: store.read(KEY) != first)


def test_a_store_that_is_gone_at_the_end_does_not_hide_why_the_run_failed(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(key: str) -> None:
        raise StoreUnreachable("gone", field="store.endpoint", fix="start it")

    with pytest.raises(ZeroDivisionError), lease(store, "demo"):
        monkeypatch.setattr(store, "read_versioned", unreachable)
        raise ZeroDivisionError
