"""Files of an S3 address, copied once to a folder of this machine: whatever they are, by whomever they were put there.

Processes of one machine wait for the first of them, and a copy is there as a whole or not at all. What was written by this
project carries hashes (a manifest), and is held against them; anything else against the store's sizes and, where they are
hashes, its ETags. Other content at the same address makes another copy.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from urllib.parse import urlsplit

from filelock import FileLock
from pydantic import ValidationError

from cluster.errors import ClusterError, CorruptArtifact
from cluster.store.config import StoreConfig
from cluster.store.manifest import DIGEST, MANIFEST, FileEntry, Manifest, hash_file
from cluster.store.s3 import S3Objects, Stored

MD5 = re.compile(r"[0-9a-f]{32}")
AGAIN = "fetch it again; if it happens again, upload the files anew"


class Source(NamedTuple):
    """An address that files are fetched from."""

    address: str
    bucket: str
    key: str
    config: StoreConfig

    @property
    def objects(self) -> S3Objects:
        """Return the bucket's objects."""
        return S3Objects(self.config)


def parse_address(address: str, config: StoreConfig) -> Source:
    """Return the source of an address ``s3://bucket/key`` or ``s3://bucket/prefix``.

    Args:
        address: The address.
        config: Endpoint, region and patience; its bucket and prefix are not used.

    Raises:
        ClusterError: It is no such address.
    """
    parts = urlsplit(address)
    key = parts.path.strip("/")
    if parts.scheme != "s3" or not parts.netloc or not key or parts.query or parts.fragment:
        raise ClusterError(
            f"{address!r} is no address of files", field="model.path", fix="write it as s3://BUCKET/PREFIX"
        )
    try:
        own = StoreConfig.model_validate({**config.model_dump(), "bucket": parts.netloc, "prefix": ""})
    except ValidationError as error:
        text = error.errors(include_url=False, include_input=False)[0]["msg"]
        raise ClusterError(f"{address!r}: {text}", field="model.path", fix="correct the bucket's name") from None
    return Source(address, parts.netloc, key, own)


def fetch_files(source: Source, cache: Path, choose: Callable[[Sequence[str]], list[str]]) -> Path:
    """Return the local copy of the file, or the folder of chosen files, at an address.

    Args:
        source: The address; that of an artifact in a store is one too.
        cache: A folder of this machine for copies.
        choose: Returns, of the names below a prefix, those that are wanted.

    Raises:
        ClusterError: There is nothing at the address, or the store cannot be used.
        CorruptArtifact: A copy is not what the store or a manifest says.
    """
    wanted = _wanted(source, choose)
    single = set(wanted) == {""}
    stamp = [source.address, source.config.endpoint, [[name, *one.stored] for name, one in sorted(wanted.items())]]
    found = cache / hashlib.sha256(json.dumps(stamp).encode()).hexdigest()[:32]
    if not found.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(found.with_suffix(".lock")):
            if not found.is_dir():
                _copy(source, wanted, found)
    return found / PurePosixPath(source.key).name if single else found


class Wanted(NamedTuple):
    """An object that is fetched, and what is known of it."""

    key: str
    stored: Stored
    entry: FileEntry | None
    """What its manifest says, where there is one."""


def _wanted(source: Source, choose: Callable[[Sequence[str]], list[str]]) -> dict[str, Wanted]:
    """Return the wanted objects by their names below the address; a single one has none."""
    listed = source.objects.listing(source.key)
    if source.key in listed:
        return {"": Wanted(source.key, listed[source.key], None)}
    start = f"{source.key}/"
    below = {
        key.removeprefix(start): Wanted(key, stored, None) for key, stored in listed.items() if key.startswith(start)
    }
    if not below:
        raise ClusterError(
            f"there is nothing at {source.address}", field="model.path", fix="correct the address, or upload the model"
        )
    for name, entry in _entries(source).items() if MANIFEST in below else ():
        # In a store, files lie under their hashes; a folder that was uploaded as it is has them by their names.
        if (held := below.get(f"files/{entry.sha256[:16]}/{name}") or below.get(name)) is not None:
            below[name] = held._replace(entry=entry)
    chosen = choose(sorted(below))
    if not chosen:
        raise ClusterError(
            f"none of the {len(below)} files at {source.address} is read",
            field="model.path",
            fix="name the prefix that holds model_index.json, or a .safetensors file",
        )
    odd = next((name for name in chosen if ".." in PurePosixPath(name).parts or name.startswith("/")), None)
    if odd is not None:
        raise CorruptArtifact(
            f"the name {odd!r} leads out of its folder", field=source.address, fix="rename the object"
        )
    return {name: below[name] for name in dict.fromkeys(chosen)}


def _entries(source: Source) -> dict[str, FileEntry]:
    """Return what a manifest of this project says of files; nothing where a file of that name is something else."""
    data = source.objects.read(f"{source.key}/{MANIFEST}")
    try:
        document = json.loads(data or b"")
        document.pop(DIGEST, None)
        return Manifest.model_validate(document).files
    except (ValueError, AttributeError, TypeError):
        return {}


def _copy(source: Source, wanted: dict[str, Wanted], folder: Path) -> None:
    """Copy the objects to a fresh folder, verify each, and put the folder in its place."""
    fresh = Path(tempfile.mkdtemp(prefix=".new-", dir=folder.parent))
    try:
        for name, one in wanted.items():
            target = fresh / (name or PurePosixPath(source.key).name)
            target.parent.mkdir(parents=True, exist_ok=True)
            if not source.objects.download(one.key, str(target)):
                raise CorruptArtifact("it was deleted while it was fetched", field=one.key, fix=AGAIN)
            _verify(source, target, one)
        fresh.rename(folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _verify(source: Source, file: Path, one: Wanted) -> None:
    """Hold a copy against its manifest or, without one, against the size and the ETag that the store had listed before."""
    where = f"s3://{source.bucket}/{one.key}"
    size = file.stat().st_size
    if size != one.stored.size:
        raise CorruptArtifact(f"{size} bytes came, where the store says {one.stored.size}", field=where, fix=AGAIN)
    if one.entry is not None:
        if hash_file(file) != one.entry:
            raise CorruptArtifact("it does not match its manifest", field=where, fix=AGAIN)
        return
    # An MD5 for what came in one part, and was not encrypted by a key of its own.
    if MD5.fullmatch(one.stored.etag):
        with file.open("rb") as stream:
            found = hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
        if found != one.stored.etag and source.objects.names_md5(one.key):
            raise CorruptArtifact(
                f"its MD5 is {found[:12]}..., where the store says {one.stored.etag[:12]}...", field=where, fix=AGAIN
            )
