"""Small objects with a checksum over key and content, which finds corrupt and misplaced objects."""

from __future__ import annotations

import hashlib

from cluster.errors import CorruptArtifact, StoreRefused
from cluster.store.limits import limit_of
from cluster.store.objects import Objects

LINE = b"\n"


def write_checksummed(store: Objects, key: str, data: bytes) -> None:
    """Write an object prefixed with a SHA-256 of its key and content.

    Raises:
        StoreRefused: It is larger than its readers take.
    """
    whole, limit = _checksum(key, data) + LINE + data, limit_of(key)
    if len(whole) > limit.size:
        raise StoreRefused(
            f"it has {len(whole)} bytes, more than {limit.kind} may have ({limit.size})",
            field=key,
            fix="make the pieces smaller, for example by generate.group_size or train.expert.lora.rank",
        )
    store.write(key, whole)


def read_checksummed(store: Objects, key: str) -> bytes | None:
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
