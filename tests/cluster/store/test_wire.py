"""What happens between processes and on the wire: races, lost answers, broken connections, proxies."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import MissingBucket, UnsafeStore
from cluster.store.artifacts import ArtifactStore

pytestmark = pytest.mark.s3
RACER = """
import sys
from concurrent.futures import ThreadPoolExecutor
from cluster.store.config import StoreConfig
from cluster.store.objects import LostRace, ObjectStore

store = ObjectStore(StoreConfig.model_validate_json(sys.argv[1]))
store.check()
print("ready", flush=True)
sys.stdin.readline()

def enter(number):
    name = f"{sys.argv[2]}.{number}"
    try:
        store.write("race", name.encode(), if_absent=True)
    except LostRace:
        return None
    return name

with ThreadPoolExecutor(4) as pool:
    print(*filter(None, pool.map(enter, range(4))))
"""


def test_of_sixteen_writers_in_four_processes_one_wins(store: ArtifactStore) -> None:
    command = [sys.executable, "-c", RACER, store.config.model_dump_json()]
    root = str(Path(__file__).parents[3])
    racers = [
        subprocess.Popen([*command, str(n)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root)
        for n in range(4)
    ]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    winners = " ".join(racer.communicate(timeout=60)[0] for racer in racers).split()
    assert len(winners) == 1
    assert store.read("race") == winners[0].encode()


@pytest.mark.parametrize("fault", ["busy", "mute", "cut"])
def test_a_passing_fault_is_tried_again(
    fault: str, store: ArtifactStore, wire: Any, over_wire: Callable[..., ArtifactStore], tmp_path: Path
) -> None:
    store.write("key", b"x" * 2000)
    (tmp_path / "up").write_bytes(b"y" * 2000)
    wire.faults = {0: fault, 1: fault}
    assert over_wire().read("key") == b"x" * 2000
    wire.faults = {wire.seen: fault}
    over_wire().write("key", b"again")
    assert store.read("key") == b"again"
    wire.faults = {wire.seen: fault}
    over_wire().upload("file", str(tmp_path / "up"))
    wire.faults = {wire.seen: fault, wire.seen + 1: fault}
    assert over_wire().download("file", str(tmp_path / "down"))
    assert (tmp_path / "down").read_bytes() == b"y" * 2000
    wire.faults = {wire.seen: fault}
    assert over_wire().keys("") == ["file", "key"]


@pytest.mark.parametrize("header", ["If-None-Match", "If-Match"])
def test_a_store_that_ignores_a_condition_is_refused(store: ArtifactStore, header: str) -> None:
    def forget(request: Any, **_: object) -> None:
        del request.headers[header]

    store._client.meta.events.register("before-sign.s3.PutObject", forget)
    with pytest.raises(UnsafeStore, match="honours If-None-Match and If-Match"):
        store.probe_conditional_writes()
    assert store.keys("") == []


def test_a_bucket_that_is_not_there_is_not_made_in_passing(store: ArtifactStore, tmp_path: Any) -> None:
    other = ArtifactStore(store.config.model_copy(update={"bucket": "misspelt"}))
    (tmp_path / "a.json").write_text("{}")
    calls: list[Callable[[], Any]] = [
        other.check,
        lambda: other.read("key"),
        lambda: other.keys(""),
        lambda: other.write("key", b""),
        lambda: other.upload("key", str(tmp_path / "a.json")),
        lambda: other.manifest("dataset", "dataset-1"),
        lambda: other.put("dataset", "dataset-1", tmp_path, config={}, seed=0),
    ]
    for call in calls:
        with pytest.raises(MissingBucket, match=r"store.bucket: .* no bucket 'misspelt'.*aws s3 mb s3://misspelt"):
            call()
    assert "misspelt" not in {bucket["Name"] for bucket in store._client.list_buckets()["Buckets"]}


def test_a_proxy_of_the_environment_is_not_asked_for_loopback(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    ArtifactStore(store.config).check()
