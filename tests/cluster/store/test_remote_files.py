"""Files at an S3 address on a real server: fetched once a machine, and held against what the store or a manifest says."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from cluster.errors import ClusterError, CorruptArtifact, MissingBucket
from cluster.store.artifacts import ArtifactStore
from cluster.store.config import StoreConfig
from cluster.store.remote_files import Source, fetch_files, parse_address
from cluster.store.s3 import S3Objects

FILES = {
    "model_index.json": b"{}",
    "unet/config.json": b"{1}",
    "unet/weights.safetensors": b"w" * 1000,
    "unet/w.bin": b"no",
}


def wanted(names: Sequence[str]) -> list[str]:
    return [name for name in names if not name.endswith(".bin")]


def source(store: ArtifactStore, key: str) -> Source:
    config = store.config
    return parse_address(f"s3://{config.bucket}/{config.full_key(key)}", config)


@pytest.fixture
def model(s3_store: ArtifactStore) -> Source:
    for name, data in FILES.items():
        s3_store.write(f"models/one/{name}", data)
    s3_store.write("models/one-more/model_index.json", b"another's")
    return source(s3_store, "models/one")


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_chosen_files_of_a_prefix_are_copied_once(
    model: Source, s3_store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = fetch_files(model, tmp_path, wanted)
    assert content(folder) == {name: data for name, data in FILES.items() if name != "unet/w.bin"}
    with monkeypatch.context() as patch:
        patch.setattr(S3Objects, "download", lambda *_, **__: pytest.fail("it is here already"))
        assert fetch_files(model, tmp_path, wanted) == folder
    s3_store.write("models/one/unet/config.json", b"{2}")
    changed = fetch_files(model, tmp_path, wanted)
    assert changed != folder
    assert (changed / "unet" / "config.json").read_bytes() == b"{2}"
    assert (folder / "unet" / "config.json").read_bytes() == b"{1}", "who reads it goes on reading it"


def test_a_single_file_keeps_its_name(model: Source, s3_store: ArtifactStore, tmp_path: Path) -> None:
    found = fetch_files(
        source(s3_store, "models/one/unet/weights.safetensors"), tmp_path, lambda _: pytest.fail("one file")
    )
    assert (found.name, found.read_bytes()) == ("weights.safetensors", b"w" * 1000)


def test_an_artifact_is_held_against_its_manifest(s3_store: ArtifactStore, tmp_path: Path) -> None:
    (tmp_path / "made" / "unet").mkdir(parents=True)
    for name in ("model_index.json", "unet/weights.safetensors"):
        (tmp_path / "made" / name).write_bytes(FILES[name])
    s3_store.put("model", "model-1", tmp_path / "made", config={}, seed=0)
    address = source(s3_store, "artifacts/model/model-1")
    chosen = ["model_index.json", "unet/weights.safetensors"]

    def choose(names: Sequence[str]) -> list[str]:
        assert set(chosen) <= set(names), "their names, and not where they lie in a store"
        return chosen

    folder = fetch_files(address, tmp_path / "cache", choose)
    assert content(folder) == content(tmp_path / "made")
    digest = hashlib.sha256(FILES["unet/weights.safetensors"]).hexdigest()[:16]
    s3_store.write(f"artifacts/model/model-1/files/{digest}/unet/weights.safetensors", b"v" * 1000)
    with pytest.raises(CorruptArtifact, match="does not match its manifest"):
        fetch_files(address, tmp_path / "cache", lambda _: ["unet/weights.safetensors"])
    assert not list((tmp_path / "cache").glob(".new-*"))


def test_bytes_that_changed_on_their_way_are_noticed(
    model: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = S3Objects.download
    change: Callable[[bytes], bytes] = bytes

    def spoilt(self: S3Objects, key: str, path: str, limit: int | None = None) -> bool:
        found = real(self, key, path, limit)
        if key.endswith("weights.safetensors"):
            Path(path).write_bytes(change(Path(path).read_bytes()))
        return found

    monkeypatch.setattr(S3Objects, "download", spoilt)
    change = lambda data: data[:-1]  # noqa: E731
    with pytest.raises(CorruptArtifact, match="999 bytes came"):
        fetch_files(model, tmp_path, wanted)
    change = lambda data: b"x" + data[1:]  # noqa: E731
    with pytest.raises(CorruptArtifact, match="its MD5 is"):
        fetch_files(model, tmp_path, wanted)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()], "nothing is left of it"


FETCHER = """
import sys, time
from pathlib import Path
from cluster.store.config import StoreConfig
from cluster.store.remote_files import fetch_files, parse_address
from cluster.store.s3 import S3Objects
real = S3Objects.download
def slow(self, key, path, limit=None):
    print("fetched", flush=True); time.sleep(0.3)
    return real(self, key, path, limit)
S3Objects.download = slow
config = StoreConfig.model_validate_json(sys.argv[1])
print(fetch_files(parse_address(sys.argv[2], config), Path(sys.argv[3]), lambda names: [n for n in names if not n.endswith(".bin")]))
"""


def test_one_of_several_processes_fetches(model: Source, tmp_path: Path) -> None:
    command = [sys.executable, "-c", FETCHER, model.config.model_dump_json(), model.address, str(tmp_path)]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    outputs = [process.communicate(timeout=60)[0].splitlines() for process in started]
    assert len({output[-1] for output in outputs}) == 1
    assert sum(len(output) - 1 for output in outputs) == 3, "three files, once each"


def test_what_a_killed_process_leaves_is_not_taken_for_a_copy(model: Source, tmp_path: Path) -> None:
    command = [sys.executable, "-c", FETCHER, model.config.model_dump_json(), model.address, str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "fetched\n"
    process.kill()
    process.wait()
    process.stdout.close()
    started = time.monotonic()
    assert len(content(fetch_files(model, tmp_path, wanted))) == 3
    assert time.monotonic() - started < 20, "its lock went with it"


def test_an_address_with_nothing_at_it_is_a_known_error(model: Source, s3_store: ArtifactStore, tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="there is nothing at s3://.*models/two"):
        fetch_files(source(s3_store, "models/two"), tmp_path, wanted)
    absent = s3_store.config.model_copy(update={"patience_s": 1.0})
    with pytest.raises(MissingBucket):
        fetch_files(parse_address("s3://not-there-at-all/models", absent), tmp_path, wanted)


@pytest.mark.parametrize(
    "address", ["s3://bucket", "s3:///key", "s3://bucket/", "http://bucket/key", "s3://Bucket_/key", "s3://b/k?x=1"]
)
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(ClusterError, match=r"model\.path: "):
        parse_address(address, StoreConfig())


def test_names_that_lead_out_of_the_folder_are_refused(model: Source, tmp_path: Path) -> None:
    for name in ("../x", "/etc/x", "unet/../../x"):
        with pytest.raises((CorruptArtifact, KeyError), match="leads out of its folder"):
            fetch_files(model, tmp_path, lambda _, name=name: [name])  # type: ignore[misc]
