"""Small objects with a checksum over key and content, which finds corrupt and misplaced objects."""

from __future__ import annotations

import hashlib

from cluster.errors import CorruptArtifact
from cluster.store.objects import ObjectStore

LINE = b"\n"


def write_checksummed(store: ObjectStore, key: str, data: bytes) -> None:
    """Write an object prefixed with a SHA-256 of its key and content."""
    store.write(key, _checksum(key, data) + LINE + data)


def read_checksummed(store: ObjectStore, key: str) -> bytes | None:
    """Return an object's content, or None when it does not exist; raise CorruptArtifact when its checksum differs."""
    found = store.read(key)
    if found is None:
        return None
    checksum, _, data = found.partition(LINE)
    if checksum != _checksum(key, data):
        raise CorruptArtifact("it does not match its hash", field=key, fix="delete it: the next run rebuilds it")
    return data


def _checksum(key: str, data: bytes) -> bytes:
    return hashlib.sha256(key.encode() + b"\0" + data).hexdigest().encode()
