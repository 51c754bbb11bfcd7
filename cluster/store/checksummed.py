"""Small objects of a running stage, each under a hash of its key and its content: damage and mix-ups are found."""

from __future__ import annotations

import hashlib

from cluster.errors import CorruptArtifact
from cluster.store.objects import ObjectStore

LINE = b"\n"


def write_checksummed(store: ObjectStore, key: str, data: bytes) -> None:
    """Write an object under its hash."""
    store.write(key, _seal(key, data) + LINE + data)


def read_checksummed(store: ObjectStore, key: str) -> bytes | None:
    """Return what ``write_checksummed`` wrote, or None when there is nothing; raise CorruptArtifact when it is damaged."""
    found = store.read(key)
    if found is None:
        return None
    seal, _, data = found.partition(LINE)
    if seal != _seal(key, data):
        raise CorruptArtifact("it does not match its hash", field=key, fix="delete it: the next run makes it again")
    return data


def _seal(key: str, data: bytes) -> bytes:
    return hashlib.sha256(key.encode() + b"\0" + data).hexdigest().encode()
