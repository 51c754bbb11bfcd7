"""The contract of an object store, kept by a folder and by S3 alike: conditional writes, prefixes, listings, limits."""

from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cluster.errors import CorruptArtifact
from cluster.store import limits
from cluster.store.artifacts import ArtifactStore
from cluster.store.limits import Limit
from cluster.store.objects import LostRace

ROOT = Path(__file__).parents[3]


def test_a_conditional_write_loses_when_its_condition_does_not_hold(store: ArtifactStore) -> None:
    store.write("a", b"1", if_absent=True)
    with pytest.raises(LostRace):
        store.write("a", b"2", if_absent=True)
    first = store.read_versioned("a")
    assert first is not None
    store.write("a", b"3", if_match=first.etag)
    with pytest.raises(LostRace):
        store.write("a", b"4", if_match=first.etag)
    assert store.read("a") == b"3"
    store.delete("a")
    with pytest.raises(LostRace):
        store.write("a", b"5", if_match=first.etag)
    assert store.read("a") is None
    store.delete("a")


def test_one_of_sixteen_writers_of_an_absent_key_wins(store: ArtifactStore) -> None:
    barrier = threading.Barrier(16)

    def write(number: int) -> bool:
        barrier.wait()
        try:
            store.write("race", b"%d" % number, if_absent=True)
        except LostRace:
            return False
        return True

    with ThreadPoolExecutor(16) as pool:
        won = list(pool.map(write, range(16)))
    assert won.count(True) == 1
    assert store.read("race") == b"%d" % won.index(True)


def test_a_key_written_again_is_another_version(store: ArtifactStore) -> None:
    tags = set()
    for data in (b"1", b"2", b"3"):
        store.write("a", data)
        found = store.read_versioned("a")
        assert found is not None
        assert found.data == data
        tags.add(found.etag)
    assert len(tags) == 3


def test_listings_are_sorted_and_begin_with_the_prefix(store: ArtifactStore) -> None:
    for key in ("x/b", "x/a", "x-1", "x/deep/a", "y", "x.z/a"):
        store.write(key, b"1")
    assert store.keys("x/") == ["x/a", "x/b", "x/deep/a"]
    assert store.keys("x/d") == ["x/deep/a"]
    assert store.keys("x") == ["x-1", "x.z/a", "x/a", "x/b", "x/deep/a"]
    assert store.keys("") == ["x-1", "x.z/a", "x/a", "x/b", "x/deep/a", "y"]
    assert store.keys("nothing/") == []


@pytest.mark.slow
def test_a_listing_goes_on_past_a_thousand_keys(store: ArtifactStore) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: store.write(f"many/{i:04d}", b"1"), range(1010)))
    assert store.keys("many/") == [f"many/{i:04d}" for i in range(1010)]


def test_a_prefix_is_a_world_of_its_own(store: ArtifactStore) -> None:
    def at(prefix: str) -> ArtifactStore:
        return ArtifactStore(store.config.model_copy(update={"prefix": prefix}))

    base = store.config.prefix
    one, longer, inner = at(f"{base}/one"), at(f"{base}/one-more"), at(f"/{base}/one/deep/")
    for number, place in enumerate((one, longer, inner)):
        place.write("k", b"%d" % number)
    assert [place.read("k") for place in (one, longer, inner)] == [b"0", b"1", b"2"]
    assert one.keys("") == ["deep/k", "k"]
    assert longer.keys("") == ["k"]
    one.delete("k")
    assert longer.read("k") == b"1"


def test_a_file_that_is_not_there_differs_from_an_empty_one(store: ArtifactStore, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    store.upload("empty", str(tmp_path / "empty"))
    assert store.download("empty", str(tmp_path / "copy"))
    assert (tmp_path / "copy").read_bytes() == b""
    assert not store.download("absent", str(tmp_path / "absent"))
    assert not (tmp_path / "absent").exists()
    assert store.read("absent") is None


def test_an_object_s_age_is_counted_from_its_last_write(store: ArtifactStore) -> None:
    store.write("a", b"1")
    found = store.read_versioned("a")
    assert found is not None
    assert 0.0 <= found.age_s < 5.0
    assert abs(store.clock_ahead_s()) < 3.0


def test_a_good_store_passes_the_probe_which_leaves_nothing(store: ArtifactStore) -> None:
    store.check()
    store.probe_conditional_writes()
    assert store.keys("") == []


RACER = """
import sys
from concurrent.futures import ThreadPoolExecutor
from cluster.store.artifacts import ArtifactStore
from cluster.store.config import StoreConfig
from cluster.store.objects import LostRace

store = ArtifactStore(StoreConfig.model_validate_json(sys.argv[1]))
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

def count(number):
    for _ in range(5):
        while True:
            found = store.read_versioned("count")
            try:
                store.write("count", b"%d" % (int(found.data) + 1), if_match=found.etag)
                break
            except LostRace:
                pass

with ThreadPoolExecutor(4) as pool:
    print(*filter(None, pool.map(enter, range(4))))
    list(pool.map(count, range(2)))
"""


def test_writers_in_four_processes_never_both_win(store: ArtifactStore) -> None:
    """Sixteen write one absent key, then eight count up by compare-and-swap: a lost count is a lost update."""
    store.write("count", b"0")
    command = [sys.executable, "-c", RACER, store.config.model_dump_json()]
    racers = [
        subprocess.Popen([*command, str(n)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
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
    assert store.read("count") == b"40"


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("pointers/aligned.json", "a pointer"),
        ("leases/demo.json", "a lease"),
        ("artifacts/expert/expert-1/manifest.json", "a manifest"),
        ("work/dataset/dataset-1/groups/000001.parquet", "a group"),
        ("work/expert/expert-1/checkpoints/00000002.safetensors", "a checkpoint"),
        ("work/merge/merge-1/trials/abc.json", "a record"),
        ("elsewhere/what", "an object of this kind"),
    ],
)
def test_an_object_over_the_limit_of_its_kind_is_refused_with_key_and_limit(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch, key: str, kind: str
) -> None:
    small = [(pattern, Limit(limit.kind, 100)) for pattern, limit in limits.LIMITS]
    monkeypatch.setattr(limits, "LIMITS", small)
    monkeypatch.setattr(limits, "OTHER", Limit(limits.OTHER.kind, 100))
    store.write(key, b"x" * 100)
    assert store.read(key) == b"x" * 100
    store.write(key, b"x" * 101)
    with pytest.raises(CorruptArtifact, match=rf"it has 101 bytes, more than {kind} may have \(100\)") as caught:
        store.read(key)
    assert caught.value.field == key


def test_a_download_stops_at_its_limit(store: ArtifactStore, tmp_path: Path) -> None:
    store.write("a", b"x" * 100)
    assert store.download("a", str(tmp_path / "a"), 100)
    with pytest.raises(CorruptArtifact, match="it has 100 bytes, more than this file may have"):
        store.download("a", str(tmp_path / "b"), 99)
    assert not (tmp_path / "b").exists()
    assert not store.download("absent", str(tmp_path / "c"), 99)
