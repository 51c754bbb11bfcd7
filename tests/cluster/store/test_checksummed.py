"""Small objects come back as they were written, under the key they were written to, or not at all."""

from __future__ import annotations

import pytest

from cluster.errors import CorruptArtifact
from cluster.store.artifacts import ArtifactStore
from cluster.store.checksummed import read_checksummed, write_checksummed


@pytest.mark.parametrize("data", [b"", b"\n", b'{"score": 1}', bytes(range(256))])
def test_what_is_read_is_what_was_written(store: ArtifactStore, data: bytes) -> None:
    write_checksummed(store, "work/a", data)
    assert read_checksummed(store, "work/a") == data
    assert read_checksummed(store, "work/b") is None


def test_every_bit_counts_and_so_does_the_key(store: ArtifactStore) -> None:
    write_checksummed(store, "work/a", b"2")
    whole = store.read("work/a") or b""
    for place in range(len(whole)):
        store.write("work/a", whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(CorruptArtifact, match="work/a: it does not match its hash"):
            read_checksummed(store, "work/a")
    store.write("work/b", whole)
    with pytest.raises(CorruptArtifact, match="work/b"):
        read_checksummed(store, "work/b")
