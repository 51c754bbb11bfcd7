"""Objects on a real S3 server: what is written, what is refused, and what is tried again."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import StoreUnreachable, UnsafeStore
from cluster.store.artifacts import ArtifactStore
from cluster.store.objects import LostRace

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


def test_objects_are_written_read_listed_and_deleted(store: ArtifactStore) -> None:
    assert store.read("a/b") is None
    store.write("a/b", b"one")
    store.write("a/b", b"two")
    store.write("a/ü c", b"")
    store.write("ab", b"x")
    assert store.read("a/b") == b"two"
    assert store.read("a/ü c") == b""
    assert store.keys("a/") == ["a/b", "a/ü c"]
    assert store.keys("") == ["a/b", "a/ü c", "ab"]
    store.delete("a/b")
    store.delete("never there")
    assert store.read("a/b") is None
    assert store.keys("a/") == ["a/ü c"]


def test_a_prefix_sees_only_its_own_keys(store: ArtifactStore) -> None:
    inner = ArtifactStore(store.config.model_copy(update={"prefix": f"{store.config.prefix}/inner"}))
    store.write("key", b"outer")
    inner.write("key", b"inner")
    assert (store.read("key"), inner.read("key")) == (b"outer", b"inner")
    assert inner.keys("") == ["key"]
    assert store.keys("") == ["inner/key", "key"]


def test_a_listing_goes_past_its_first_page_and_skips_folder_marks(store: ArtifactStore) -> None:
    names = [f"many/{number:04d}" for number in range(1005)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: store.write(name, b""), names))
    store._client.put_object(Bucket=store.config.bucket, Key=f"{store.config.prefix}/many/mark/", Body=b"")
    assert store.keys("many/") == names


def test_large_files_go_up_and_down_whole(store: ArtifactStore, tmp_path: Path) -> None:
    content = bytes(range(256)) * (20 * 2**20 // 256) + b"end"
    (tmp_path / "up").write_bytes(content)
    store.upload("large", str(tmp_path / "up"))
    assert store.download("large", str(tmp_path / "down"))
    assert (tmp_path / "down").read_bytes() == content
    assert not store.download("absent", str(tmp_path / "none"))
    assert not (tmp_path / "none").exists()


def test_a_conditional_write_needs_its_condition(store: ArtifactStore) -> None:
    store.write("key", b"one", if_absent=True)
    with pytest.raises(LostRace):
        store.write("key", b"two", if_absent=True)
    first = store.read_versioned("key")
    assert first is not None
    store.write("key", b"three", if_match=first.etag)
    with pytest.raises(LostRace):
        store.write("key", b"four", if_match=first.etag)
    with pytest.raises(LostRace):
        store.write("absent", b"five", if_match=first.etag)
    assert store.read("key") == b"three"
    assert store.read("absent") is None


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


def test_of_sixteen_swaps_of_one_version_one_wins(store: ArtifactStore) -> None:
    store.write("key", b"start")
    found = store.read_versioned("key")
    assert found is not None

    def swap(number: int) -> int | None:
        try:
            store.write("key", str(number).encode(), if_match=found.etag)
        except LostRace:
            return None
        return number

    with ThreadPoolExecutor(16) as pool:
        winners = [number for number in pool.map(swap, range(16)) if number is not None]
    assert len(winners) == 1
    assert store.read("key") == str(winners[0]).encode()


def test_a_store_travels_without_its_connection(store: ArtifactStore) -> None:
    store.write("key", b"here")
    assert pickle.loads(pickle.dumps(store)).read("key") == b"here"


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


def test_a_fault_that_stays_is_told(wire: Any, over_wire: Callable[..., ArtifactStore]) -> None:
    wire.faults = dict.fromkeys(range(3), "busy")
    with pytest.raises(StoreUnreachable, match=rf"store.endpoint: {wire.endpoint} keeps answering 503"):
        over_wire(attempts=3).read("key")
    assert wire.seen == 3


def test_a_store_that_honours_conditions_passes_the_probe_and_keeps_nothing_of_it(store: ArtifactStore) -> None:
    store.probe_conditional_writes()
    assert store.keys("") == []


@pytest.mark.parametrize("header", ["If-None-Match", "If-Match"])
def test_a_store_that_ignores_a_condition_is_refused(store: ArtifactStore, header: str) -> None:
    def forget(request: Any, **_: object) -> None:
        del request.headers[header]

    store._client.meta.events.register("before-sign.s3.PutObject", forget)
    with pytest.raises(UnsafeStore, match="honours If-None-Match and If-Match"):
        store.probe_conditional_writes()
    assert store.keys("") == []
