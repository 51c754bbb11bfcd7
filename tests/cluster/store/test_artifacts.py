"""Artifacts in a folder and on a real S3 server: atomic, one winner, and no damage that goes unseen."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import AlreadyPublished, ClusterError, CorruptArtifact, InvalidArtifactFolder
from cluster.store.artifacts import ArtifactStore
from cluster.store.limits import Limit, limit_of
from cluster.store.local_copy import VerifiedFiles
from cluster.store.manifest import MANIFEST, hash_file
from cluster.store.pointer import read_pointer

FILES = {"weights.safetensors": b"w" * 1000, "data/rows.parquet": b"rows", "data/empty.json": b"", "a b.txt": b"text"}
PLACE = f"artifacts/expert/expert-1/{MANIFEST}"


def filled(folder: Path, files: dict[str, bytes] | None = None) -> Path:
    for name, data in (FILES if files is None else files).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def publish(store: ArtifactStore, folder: Path) -> Any:
    return store.put("expert", "expert-1", folder, config={"rank": 8}, seed=3, parents=["dataset/d-1"])


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.relative_to(folder).as_posix() != MANIFEST
    }


@pytest.fixture
def published(store: ArtifactStore, tmp_path: Path) -> ArtifactStore:
    publish(store, filled(tmp_path / "source"))
    return store


def test_what_is_fetched_is_what_was_put(published: ArtifactStore, tmp_path: Path) -> None:
    folder = published.fetch("expert", "expert-1", tmp_path / "copy")
    assert contents(folder) == FILES
    manifest = published.verify("expert", "expert-1")
    assert (manifest.seed, manifest.parents, manifest.config) == (3, ("dataset/d-1",), {"rank": 8})
    assert json.loads((folder / MANIFEST).read_text()) == manifest.model_dump(mode="json")
    assert published.ids("expert") == ["expert-1"]
    assert published.ids("exp") == []


def test_a_large_file_goes_in_parts_and_comes_back_whole(store: ArtifactStore, tmp_path: Path) -> None:
    source = filled(tmp_path / "source", {"big.safetensors": bytes(range(256)) * (80 * 1024)})
    publish(store, source)
    assert contents(store.fetch("expert", "expert-1", tmp_path / "copy")) == contents(source)


def test_a_nested_manifest_is_a_file_like_any_other(store: ArtifactStore, tmp_path: Path) -> None:
    publish(store, filled(tmp_path / "source", {"step-1/manifest.json": b"{}", MANIFEST: b"stale"}))
    assert contents(store.fetch("expert", "expert-1", tmp_path / "copy")) == {"step-1/manifest.json": b"{}"}


def test_a_store_can_be_pickled_and_works_where_it_arrives(published: ArtifactStore) -> None:
    again = pickle.loads(pickle.dumps(published))
    assert again.verify("expert", "expert-1") == published.verify("expert", "expert-1")


def test_nothing_is_visible_before_the_manifest(
    store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    real = store.upload

    def upload(key: str, path: str) -> None:
        assert store.manifest("expert", "expert-1") is None
        assert store.ids("expert") == []
        real(key, path)
        written.append(key)
        if len(written) == len(FILES):
            raise KeyboardInterrupt

    monkeypatch.setattr(store, "upload", upload)
    with pytest.raises(KeyboardInterrupt):
        publish(store, filled(tmp_path / "source"))
    assert store.keys("artifacts/") == sorted(written), "the files are there"
    assert store.manifest("expert", "expert-1") is None, "the artifact is not"
    with pytest.raises(CorruptArtifact, match="not published"):
        store.fetch("expert", "expert-1", tmp_path / "copy")
    monkeypatch.undo()
    publish(store, tmp_path / "source")
    assert contents(store.fetch("expert", "expert-1", tmp_path / "copy")) == FILES


PUBLISHER = """
import sys
from pathlib import Path
from cluster.store.artifacts import ArtifactStore
from cluster.store.config import StoreConfig
from cluster.store.pointer import read_pointer, swap_pointer

store, folder = ArtifactStore(StoreConfig.model_validate_json(sys.argv[1])), Path(sys.argv[2])
print("ready", flush=True)
for number in range(int(sys.argv[3]), 10_000):
    (folder / "a.json").write_text(str(number) * 50_000)
    store.put("x", f"x-{number}", folder, config={}, seed=0)
    swap_pointer(store, "aligned", read_pointer(store, "aligned"), f"x-{number}")
"""


def test_a_publisher_killed_in_the_middle_leaves_whole_artifacts_and_a_pointer_to_one(
    store: ArtifactStore, tmp_path: Path
) -> None:
    (tmp_path / "source").mkdir()
    for number in range(3):
        command = [sys.executable, "-c", PUBLISHER, store.config.model_dump_json(), str(tmp_path / "source")]
        publisher = subprocess.Popen(
            [*command, str(1000 * number)], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[3]
        )
        assert publisher.stdout is not None
        assert publisher.stdout.readline() == "ready\n"
        deadline = time.monotonic() + 60
        while len(store.ids("x")) < 2 * (number + 1) and time.monotonic() < deadline:
            time.sleep(0.01 * number)
        publisher.kill()
        publisher.communicate()
        published = store.ids("x")
        assert len(published) >= 2 * (number + 1)
        for name in published:
            store.verify("x", name)
        assert read_pointer(store, "aligned") in published


def together(count: int, act: Callable[[int], Any]) -> list[Any]:
    barrier = threading.Barrier(count)

    def one(number: int) -> Any:
        barrier.wait()
        try:
            return act(number)
        except ClusterError as error:
            return error

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


def test_of_sixteen_publishers_one_wins_and_its_content_is_whole(store: ArtifactStore, tmp_path: Path) -> None:
    sources = [filled(tmp_path / str(i), {"a.json": b"[%d]" % i, "b.json": b"[%d]" % (i + 100)}) for i in range(16)]
    outcomes = together(16, lambda i: pickle.loads(pickle.dumps(store)).put("x", "x-1", sources[i], config={}, seed=i))
    winners = [i for i, outcome in enumerate(outcomes) if not isinstance(outcome, Exception)]
    assert len(winners) == 1
    assert {type(outcome) for i, outcome in enumerate(outcomes) if i != winners[0]} == {AlreadyPublished}
    assert contents(store.fetch("x", "x-1", tmp_path / "copy")) == contents(sources[winners[0]])
    store.discard("x", "x-1")
    assert store.keys("artifacts/x/") == [], "what the losers left goes with the artifact"


def test_publishers_of_the_same_content_all_get_the_first_one_s_manifest(store: ArtifactStore, tmp_path: Path) -> None:
    source = filled(tmp_path / "source")
    outcomes = together(8, lambda i: store.put("x", "x-1", source, config={}, seed=i))
    assert outcomes == [store.manifest("x", "x-1")] * 8


def test_a_discarded_artifact_can_be_made_again(published: ArtifactStore, tmp_path: Path) -> None:
    with pytest.raises(AlreadyPublished, match="expert/expert-1"):
        publish(published, filled(tmp_path / "other", {"new.json": b"1"}))
    published.discard("expert", "expert-1")
    assert published.keys("") == []
    publish(published, tmp_path / "other")
    assert contents(published.fetch("expert", "expert-1", tmp_path / "copy")) == {"new.json": b"1"}


@pytest.mark.parametrize(
    ("files", "match"),
    [
        ({}, "no files"),
        ({"pytorch_model.bin": b"1"}, "can run code"),
        ({"deep/model.PT": b"1"}, "can run code"),
        ({"ünsafe.json": b"1"}, "unsafe file name"),
    ],
)
def test_what_an_artifact_may_not_hold_is_not_published(
    store: ArtifactStore, tmp_path: Path, files: dict[str, bytes], match: str
) -> None:
    with pytest.raises(ClusterError, match=match) as caught:
        publish(store, filled(tmp_path / "source", files))
    assert caught.value.field == "expert/expert-1"
    assert store.keys("") == []


def test_a_manifest_that_could_never_be_read_is_not_written(
    store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = Limit("a manifest", 1000)
    monkeypatch.setattr("cluster.store.artifacts.limit_of", lambda key: small if key == PLACE else limit_of(key))
    with pytest.raises(InvalidArtifactFolder, match=r"expert/expert-1: the manifest of its 4 files has \d+ bytes"):
        publish(store, filled(tmp_path / "source"))
    assert store.keys("") == []


def flip(data: bytes) -> bytes:
    return data[:500] + bytes([data[500] ^ 1]) + data[501:]


@pytest.mark.parametrize(
    "damage",
    [flip, lambda data: data[:-1], lambda data: b"", lambda data: data + b"w", lambda data: None],
    ids=["one bit", "truncated", "empty", "longer", "deleted"],
)
def test_a_damaged_file_is_found_by_fetch_and_verify(
    published: ArtifactStore, tmp_path: Path, damage: Callable[[bytes], bytes | None]
) -> None:
    [key] = [key for key in published.keys("artifacts/") if key.endswith("weights.safetensors")]
    data = damage(published.read(key) or b"")
    if data is None:
        published.delete(key)
    else:
        published.write(key, data)
    for read in (published.verify, lambda *ref: published.fetch(*ref, tmp_path / "copy")):
        with pytest.raises(CorruptArtifact, match="expert/expert-1/weights.safetensors"):
            read("expert", "expert-1")
    assert "weights.safetensors" not in contents(tmp_path / "copy"), "nothing damaged is left behind"


def test_two_files_that_changed_places_are_found(published: ArtifactStore, tmp_path: Path) -> None:
    one, other = (
        next(key for key in published.keys("artifacts/") if key.endswith(name)) for name in ("parquet", "a b.txt")
    )
    first, second = published.read(one), published.read(other)
    assert first is not None
    assert second is not None
    published.write(one, second)
    published.write(other, first)
    with pytest.raises(CorruptArtifact):
        published.verify("expert", "expert-1")
    with pytest.raises(CorruptArtifact):
        published.fetch("expert", "expert-1", tmp_path / "copy")


def test_a_local_copy_that_was_damaged_is_brought_again(published: ArtifactStore, tmp_path: Path) -> None:
    folder = published.fetch("expert", "expert-1", tmp_path / "copy")
    (folder / "a b.txt").write_bytes(b"tampered")
    (folder / "data/rows.parquet").unlink()
    kept = (folder / "weights.safetensors").stat().st_ino
    assert contents(published.fetch("expert", "expert-1", folder)) == FILES
    assert (folder / "weights.safetensors").stat().st_ino == kept, "what is right is not fetched again"


def test_several_may_fetch_into_one_folder(published: ArtifactStore, tmp_path: Path) -> None:
    together(6, lambda _: published.fetch("expert", "expert-1", tmp_path / "copy"))
    assert contents(tmp_path / "copy") == FILES


@pytest.mark.parametrize(
    "name",
    ["../escape.txt", "/etc/passwd", "a/../../b", "./a", "a//b", ".", "a\\..\\b", "model.bin", "x/m.PKL", MANIFEST, ""],
)
def test_a_manifest_that_names_an_unsafe_file_is_refused(published: ArtifactStore, tmp_path: Path, name: str) -> None:
    manifest = json.loads(published.read(PLACE) or b"")
    manifest["files"][name] = manifest["files"]["a b.txt"]
    published.write(PLACE, json.dumps(manifest).encode())
    (tmp_path / "in").mkdir()
    for read in (published.manifest, published.verify, lambda *ref: published.fetch(*ref, tmp_path / "in" / "copy")):
        with pytest.raises(CorruptArtifact, match=r"unsafe file name|can run code"):
            read("expert", "expert-1")
    assert list((tmp_path / "in").iterdir()) == []


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda m: b"", "cannot be used"),
        (lambda m: b"not json", "cannot be used"),
        (lambda m: b"[]", "cannot be used"),
        (lambda m: b"[" * 60_000, "cannot be used"),
        (lambda m: json.dumps(m).encode().replace(b'{"rank": 8}', b'{"rank": NaN}'), "cannot be used"),
        (lambda m: json.dumps(m).encode()[:-20], "cannot be used"),
        (lambda m: json.dumps({k: v for k, v in m.items() if k != "seed"}).encode(), "cannot be used"),
        (lambda m: json.dumps(m | {"surprise": 1}).encode(), "cannot be used"),
        (lambda m: json.dumps(m | {"id": "expert-2"}).encode(), "that of expert/expert-2"),
        (lambda m: json.dumps(m | {"kind": "merge"}).encode(), "that of merge/expert-1"),
        (lambda m: json.dumps(m | {"config": {"rank": 9}}).encode(), "does not match its hash"),
    ],
    ids=[
        "empty",
        "text",
        "list",
        "deep",
        "NaN",
        "cut",
        "no seed",
        "unknown field",
        "other id",
        "other kind",
        "other config",
    ],
)
def test_a_manifest_that_is_not_this_artifact_s_is_refused(
    published: ArtifactStore, tmp_path: Path, change: Callable[[dict[str, Any]], bytes], match: str
) -> None:
    published.write(PLACE, change(json.loads(published.read(PLACE) or b"")))
    with pytest.raises(CorruptArtifact, match=match) as caught:
        published.fetch("expert", "expert-1", tmp_path / "copy")
    assert caught.value.fix


def test_the_hash_of_a_file_is_sha256_of_all_of_it(tmp_path: Path) -> None:
    import hashlib

    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * 10_000)
    assert hash_file(path).sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert hash_file(path).size == 2_560_000


def test_what_processes_added_is_published_by_its_names_and_hashes(store: ArtifactStore, tmp_path: Path) -> None:
    there = pickle.loads(pickle.dumps(store))
    stored = {name: there.add("expert", "expert-1", name, data) for name, data in FILES.items()}
    assert store.ids("expert") == [], "files without a manifest are no artifact"
    folder = filled(tmp_path / "own", {"card.md": b"small"})
    manifest = store.put("expert", "expert-1", folder, config={}, seed=0, stored=stored)
    assert set(manifest.files) == {*FILES, "card.md"}
    assert store.verify("expert", "expert-1") == manifest
    assert contents(store.fetch("expert", "expert-1", tmp_path / "copy")) == {**FILES, "card.md": b"small"}
    for name in ("../x", "a.bin", MANIFEST):
        with pytest.raises(ClusterError, match=r"unsafe file name|can run code"):
            store.add("expert", "expert-1", name, b"")


def test_an_artifact_is_not_published_without_a_file_that_was_added(store: ArtifactStore, tmp_path: Path) -> None:
    stored = {name: store.add("expert", "expert-1", name, data) for name, data in FILES.items()}
    [key] = [key for key in store.keys("artifacts/") if key.endswith("rows.parquet")]
    for damage in (b"row", None):
        if damage is None:
            store.delete(key)
        else:
            store.write(key, damage)
        with pytest.raises(CorruptArtifact, match=r"expert/expert-1/data/rows\.parquet"):
            store.put("expert", "expert-1", tmp_path, config={}, seed=0, stored=stored)
        assert store.manifest("expert", "expert-1") is None


def test_of_several_makers_one_publishes_and_the_others_files_can_be_pruned(
    store: ArtifactStore, tmp_path: Path
) -> None:
    first = {"a.json": store.add("x", "x-1", "a.json", b"[1]")}
    lost = {"a.json": store.add("x", "x-1", "a.json", b"[2]")}
    store.put("x", "x-1", tmp_path, config={}, seed=0, stored=first)
    with pytest.raises(AlreadyPublished):
        store.put("x", "x-1", tmp_path, config={}, seed=0, stored=lost)
    assert len(store.keys("artifacts/x/x-1/files/")) == 2
    store.prune("x", "x-1")
    assert len(store.keys("artifacts/x/x-1/files/")) == 1
    assert store.read_file("x", "x-1", "a.json") == b"[1]"


def test_sizes_tell_what_is_lost_without_a_byte_read(store: ArtifactStore, tmp_path: Path) -> None:
    manifest = publish(store, filled(tmp_path / "source"))
    assert store.lost_files("expert", "expert-1", manifest.files) == []
    keys = store.keys("artifacts/expert/expert-1/files/")
    assert store.sizes("artifacts/expert/expert-1/files/") == {key: len(store.read(key) or b"") for key in keys}
    cut, gone = (next(key for key in keys if key.endswith(name)) for name in ("weights.safetensors", "a b.txt"))
    store.write(cut, b"w" * 999)
    store.delete(gone)
    assert sorted(store.lost_files("expert", "expert-1", manifest.files)) == ["a b.txt", "weights.safetensors"]


def test_some_files_are_fetched_by_their_patterns(published: ArtifactStore, tmp_path: Path) -> None:
    folder = published.fetch("expert", "expert-1", tmp_path / "copy", files=["data/*", "a b.txt"])
    assert set(contents(folder)) == {"data/rows.parquet", "data/empty.json", "a b.txt"}


def test_a_copy_is_read_for_its_hashes_once(
    published: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "copy"

    def fetch() -> None:
        verified = VerifiedFiles(folder)
        published.fetch("expert", "expert-1", folder, verified=verified)
        verified.save()

    fetch()
    hashed: list[Path] = []
    monkeypatch.setattr("cluster.store.local_copy.hash_file", lambda path: hashed.append(path) or hash_file(path))
    fetch()
    assert hashed == []
    status = (folder / "weights.safetensors").stat()
    (folder / "weights.safetensors").write_bytes(b"W" * 1000)
    os.utime(folder / "weights.safetensors", ns=(status.st_atime_ns, status.st_mtime_ns))
    (folder / "stale.json").write_text("{}")
    fetch()
    assert contents(folder) == FILES, "a change is seen although size and time are as before"
    for record in (b"", b"[]", b"{", b'{"weights.safetensors": 3}'):
        VerifiedFiles(folder).path.write_bytes(record)
        fetch()
        assert contents(folder) == FILES


def test_a_file_that_is_corrupt_is_deleted_and_a_whole_one_is_not(published: ArtifactStore) -> None:
    keys = published.keys("artifacts/expert/expert-1/files/")
    for name in FILES:
        published.verify_file("expert", "expert-1", name)
    published.verify_file("expert", "expert-1", "never heard of")
    [key] = [key for key in keys if key.endswith("weights.safetensors")]
    published.write(key, b"x" * 1000)
    with pytest.raises(CorruptArtifact, match=r"weights\.safetensors"):
        published.verify_file("expert", "expert-1", "weights.safetensors")
    assert published.keys("artifacts/expert/expert-1/files/") == [other for other in keys if other != key]
    assert published.manifest("expert", "expert-1") is not None
    published.withdraw("expert", "expert-1")
    assert published.manifest("expert", "expert-1") is None
