"""A store in a local folder: nothing half after a kill, no way out of the folder, and causes that are named."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import pickle
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.errors import ClusterError, CorruptArtifact, StoreFull, StoreRefused, StoreUnreachable, UnsafeStore
from cluster.store import folder as folder_module
from cluster.store.artifacts import ArtifactStore
from cluster.store.config import StoreConfig

ROOT = Path(__file__).parents[3]
WRITER = """
import sys
from pathlib import Path
from cluster.store.artifacts import ArtifactStore
from cluster.store.config import StoreConfig

store = ArtifactStore(StoreConfig.model_validate_json(sys.argv[1]))
path = Path(sys.argv[2])
store.write("k", b"0" * 300_000)
print("ready", flush=True)
while True:
    for digit in b"0123456789":
        data = bytes([digit]) * 300_000
        path.write_bytes(data)
        store.write("k", data)
        store.upload("k", str(path))
"""


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    """Return a store in a folder that is not there yet."""
    return ArtifactStore(StoreConfig(data_dir=tmp_path / "store", patience_s=1.0))


def file_of(store: ArtifactStore, key: str) -> Path:
    return Path(store.url(key))


def test_a_writer_killed_in_the_middle_leaves_a_whole_object_and_no_lock(store: ArtifactStore, tmp_path: Path) -> None:
    for number in range(4):
        command = [sys.executable, "-c", WRITER, store.config.model_dump_json(), str(tmp_path / "data")]
        writer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        time.sleep(0.05 + 0.03 * number)
        os.kill(writer.pid, signal.SIGKILL)
        writer.communicate()
        found = store.read("k")
        assert found is not None
        assert len(found) == 300_000
        assert len(set(found)) == 1, "half of one write and half of another"
        assert store.keys("") == ["k"]
    store.write("k", b"now")
    assert store.read("k") == b"now"


def test_what_killed_writers_left_is_swept_and_never_listed(store: ArtifactStore) -> None:
    store.check()
    partials = store.config.data_dir / "partial"
    for name, age_s in (("1-old", 7200.0), ("2-new", 0.0)):
        (partials / name).write_bytes(b"half")
        os.utime(partials / name, (time.time() - age_s,) * 2)
    assert store.keys("") == []
    store.check()
    assert [path.name for path in partials.iterdir()] == ["2-new"], "another writer may still be at it"


def test_the_folder_is_its_owner_s_alone(store: ArtifactStore) -> None:
    store.write("a/b", b"1")
    store.check()
    folder = store.config.data_dir
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in [folder, *folder.rglob("*")]}
    assert set(modes.values()) == {0o700, 0o600}
    assert all(mode == 0o700 for path, mode in modes.items() if path.is_dir())


def test_reading_makes_no_folder(store: ArtifactStore) -> None:
    assert store.read("a") is None
    assert store.keys("") == []
    store.delete("a")
    assert not store.config.data_dir.exists()


def test_a_relative_folder_is_the_same_in_a_process_that_runs_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store = ArtifactStore(StoreConfig())
    store.write("a", b"1")
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    assert pickle.loads(pickle.dumps(store)).read("a") == b"1"
    assert ArtifactStore(store.config).read("a") == b"1"
    assert file_of(store, "a") == tmp_path / "out/store/objects/a"


BAD_KEYS = ("../a", "a/../../b", "/etc/passwd", "a//b", "a/", "./a", "a/.", "", "..", "a\0b", "a\nb")


@pytest.mark.parametrize("key", BAD_KEYS)
def test_a_key_that_could_leave_the_folder_is_refused_by_every_call(
    store: ArtifactStore, tmp_path: Path, key: str
) -> None:
    (tmp_path / "file").write_bytes(b"1")
    calls: list[Callable[[], object]] = [
        lambda: store.read(key),
        lambda: store.write(key, b"1"),
        lambda: store.write(key, b"1", if_absent=True),
        lambda: store.upload(key, str(tmp_path / "file")),
        lambda: store.download(key, str(tmp_path / "copy")),
        lambda: store.delete(key),
    ]
    for call in [*calls, *([lambda: store.keys(key)] if key.startswith(("../", "a/..")) else [])]:
        with pytest.raises(StoreRefused, match="is not a key"):
            call()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_a_prefix_that_leaves_the_folder_is_refused(store: ArtifactStore) -> None:
    outside = ArtifactStore(store.config.model_copy(update={"prefix": "../../x"}))
    for call in (outside.check, lambda: outside.write("a", b"1"), lambda: outside.keys("")):
        with pytest.raises(StoreRefused, match="is not a key"):
            call()


def test_links_inside_are_not_followed(store: ArtifactStore, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_bytes(b"secret")
    store.write("a/b", b"1")
    objects = store.config.data_dir / "objects"
    (objects / "file").symlink_to(tmp_path / "outside" / "secret")
    (objects / "folder").symlink_to(tmp_path / "outside")
    for key in ("file", "folder/secret"):
        for call in (lambda key=key: store.read(key), lambda key=key: store.download(key, str(tmp_path / "copy"))):
            with pytest.raises(CorruptArtifact, match="symbolic link"):
                call()
    with pytest.raises(CorruptArtifact, match="symbolic link"):
        store.write("folder/new", b"1")
    assert store.keys("") == ["a/b"]
    store.write("file", b"replaced")
    assert store.read("file") == b"replaced"
    store.delete("file")
    assert (tmp_path / "outside" / "secret").read_bytes() == b"secret"
    assert [path.name for path in (tmp_path / "outside").iterdir()] == ["secret"]


def test_what_is_no_file_is_named_and_does_not_block(store: ArtifactStore) -> None:
    store.write("a", b"1")
    os.mkfifo(store.config.data_dir / "objects" / "pipe")
    with pytest.raises(CorruptArtifact, match="no regular file"):
        store.read("pipe")
    assert store.keys("") == ["a"]


def test_an_object_and_a_folder_of_one_name_are_told_apart(store: ArtifactStore) -> None:
    store.write("a/b", b"1")
    assert store.read("a") is None
    store.delete("a")
    assert store.read("a/b/c") is None
    store.delete("a/b/c")
    for key in ("a/b/c", "a"):
        with pytest.raises(StoreRefused):
            store.write(key, b"1")
    assert store.keys("") == ["a/b"]


def test_a_copy_is_another_file(store: ArtifactStore, tmp_path: Path) -> None:
    """A fetched file that is changed in place must not change the store, nor a source that was uploaded."""
    (tmp_path / "source").write_bytes(b"1")
    store.upload("a", str(tmp_path / "source"))
    assert store.download("a", str(tmp_path / "copy"))
    (tmp_path / "copy").write_bytes(b"changed")
    (tmp_path / "source").write_bytes(b"changed")
    assert store.read("a") == b"1"


def test_a_lock_that_is_not_given_back_is_reported_when_patience_ends(store: ArtifactStore) -> None:
    store.write("a", b"1")
    [lock] = (store.config.data_dir / "locks").iterdir()
    with lock.open("r+") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(StoreUnreachable, match=rf"held {lock} for 1 s"):
            store.write("a", b"2")
        assert store.read("a") == b"1", "readers need no lock"
    store.write("a", b"2")


@pytest.mark.parametrize(
    ("function", "number", "kind", "match"),
    [
        ("fsync", errno.ENOSPC, StoreFull, "no room"),
        ("fsync", errno.EDQUOT, StoreFull, "no room"),
        ("link", errno.EPERM, UnsafeStore, "no hard links"),
        ("link", errno.EACCES, StoreRefused, "Permission denied"),
        ("link", errno.EIO, StoreRefused, "Input/output error"),
    ],
)
def test_an_error_of_the_disk_is_a_known_one(
    store: ArtifactStore,
    monkeypatch: pytest.MonkeyPatch,
    function: str,
    number: int,
    kind: type[ClusterError],
    match: str,
) -> None:
    store.check()

    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, function, fail)
        with pytest.raises(kind, match=match) as caught:
            store.write("a", b"1", if_absent=True)
    assert caught.value.field == "store.data_dir"
    assert store.keys("") == []
    assert list((store.config.data_dir / "partial").iterdir()) == []


def test_a_file_system_without_locks_is_refused(store: ArtifactStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(folder_module.fcntl, "flock", fail)
    with pytest.raises(UnsafeStore, match="has no locks"):
        store.write("a", b"1")


@pytest.mark.parametrize("place", ["/proc/sys/store", "/dev/null/store"])
def test_a_folder_that_cannot_be_made_is_named(place: str) -> None:
    with pytest.raises(StoreRefused, match=rf"store\.data_dir: {place}"):
        ArtifactStore(StoreConfig(data_dir=Path(place))).check()


def test_the_data_of_the_former_server_are_left_alone_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Earlier versions ran an S3 server on the default folder: the new store starts clean beside its files."""
    (tmp_path / "data" / "m9333").mkdir(parents=True)
    former = {name: tmp_path / name for name in ("s3.json", "server.log", "server.json", "lock", "data/mini.options")}
    for path in former.values():
        path.write_text("{}")
    store = ArtifactStore(StoreConfig(data_dir=tmp_path))
    with caplog.at_level(logging.WARNING):
        store.check()
    assert "the S3 server that earlier versions ran there" in caplog.text
    store.write("a", b"1")
    assert store.keys("") == ["a"]
    assert all(path.read_text() == "{}" for path in former.values())
