"""Small objects with a checksum over key and content, which finds corrupt and misplaced objects."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from cluster.errors import CorruptArtifact, StoreRefused
from cluster.store.limits import limit_of
from cluster.store.objects import LostRace, Objects

LINE = b"\n"
TRIES = 5
"""Races with other writers that a write loses before it gives up."""


def write_checksummed(store: Objects, key: str, data: bytes) -> None:
    """Write an object prefixed with a SHA-256 of its key and content; another under the key is replaced.

    Raises:
        StoreRefused: It is larger than its readers take.
    """
    store.write(key, _sealed(key, data))


def write_checksummed_once(store: Objects, key: str, data: bytes, whole: Callable[[bytes], bool]) -> bool:
    """Write an object unless there is a whole one; return whether it was written.

    What is there is replaced only when it is damaged, and only in the version that was found to be: of several writers
    one wins, and none replaces another's whole object.

    Args:
        store: Where it is written.
        key: Its key.
        data: Its content.
        whole: Returns whether content whose checksum is right can be used.

    Raises:
        StoreRefused: It is larger than its readers take.
        CorruptArtifact: Other writers keep replacing it by damaged objects.
    """
    sealed = _sealed(key, data)
    etag: str | None = None
    for _ in range(TRIES):
        try:
            store.write(key, sealed, if_absent=etag is None, if_match=etag)
        except LostRace:
            found = store.read_versioned(key)
            etag = None if found is None else found.etag
            if found is None:
                continue
            # Equal when an earlier try succeeded and only its answer was lost.
            if found.data == sealed or ((content := _content(key, found.data)) is not None and whole(content)):
                return found.data == sealed
        else:
            return True
    raise CorruptArtifact("another writer keeps replacing it", field=key, fix="find and stop what else writes there")


def read_checksummed(store: Objects, key: str) -> bytes | None:
    """Return an object's content, or None when it does not exist; raise CorruptArtifact when its checksum differs."""
    found = store.read(key)
    if found is None:
        return None
    data = _content(key, found)
    if data is None:
        raise CorruptArtifact("it does not match its hash", field=key, fix="delete it: the next run rebuilds it")
    return data


def _sealed(key: str, data: bytes) -> bytes:
    """Return content with its checksum; raise StoreRefused when it is larger than its readers take."""
    sealed, limit = _checksum(key, data) + LINE + data, limit_of(key)
    if len(sealed) > limit.size:
        raise StoreRefused(
            f"it has {len(sealed)} bytes, more than {limit.kind} may have ({limit.size})",
            field=key,
            fix="make the pieces smaller, for example by evaluate.group_size or train.expert.lora.rank",
        )
    return sealed


def _content(key: str, sealed: bytes) -> bytes | None:
    """Return an object's content, or None when its checksum differs."""
    checksum, _, data = sealed.partition(LINE)
    return data if checksum == _checksum(key, data) else None


def _checksum(key: str, data: bytes) -> bytes:
    return hashlib.sha256(key.encode() + b"\0" + data).hexdigest().encode()
