"""Finished groups of rows in the store's work area: written at once, named by their hash, never made twice."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import TYPE_CHECKING

from safetensors.torch import load, save
from torch import Tensor

from cluster.errors import CorruptArtifact
from cluster.store.artifacts import ArtifactStore
from cluster.store.checksummed import read_checksummed, write_checksummed
from safety.dataset.record import Record, dump_group, load_group

if TYPE_CHECKING:  # The actors import this module, and have no need of a run's whole config.
    from jobs.run.artifacts import ArtifactRef

HASH_DIGITS = 32


class GroupStore:
    """The groups of one dataset that are done. It can be pickled, and travels to the actors."""

    def __init__(self, store: ArtifactStore, ref: ArtifactRef) -> None:
        self.store = store
        self.place = f"work/{ref.kind}/{ref.id}"

    def write(self, index: int, records: Iterable[Record]) -> None:
        """Write a finished group; the key's last part is the content's hash."""
        data = dump_group(list(records))
        self.store.write(f"{self.place}/groups/{index:06d}-{_digest(data)}.parquet", data)

    def finished(self) -> dict[int, str]:
        """Return the keys of the finished groups by index."""
        found: dict[int, str] = {}
        for key in self.store.keys(f"{self.place}/groups/"):
            index, _, _ = key.rpartition("/")[2].partition("-")
            found.setdefault(int(index), key)
        return found

    def verified(self) -> dict[int, str]:
        """Return the finished groups that read back whole; damaged ones are deleted, so that they are made again.

        Without the empty prompt's states one group counts as not there: whoever makes it writes them again.
        """
        found = {}
        for index, key in self.finished().items():
            try:
                self.read(key)
            except CorruptArtifact:
                continue
            found[index] = key
        try:
            self.read_empty()
        except CorruptArtifact:
            found.pop(max(found, default=-1), None)
        return found

    def read(self, key: str) -> list[Record]:
        """Return a group's records; raise CorruptArtifact, and delete it, when it is not what its name says."""
        data = self.store.read(key)
        if data is None or _digest(data) != key.rpartition("-")[2].removesuffix(".parquet"):
            self.store.delete(key)
            raise CorruptArtifact(
                "the group is damaged and was deleted", field=key, fix="run the job again: it makes this group again"
            )
        return load_group(data)

    def write_empty(self, states: dict[str, Tensor]) -> None:
        """Write the empty prompt's text states, which every actor knows alike."""
        write_checksummed(self.store, self._empty, save(states))

    def read_empty(self) -> dict[str, Tensor]:
        """Return the empty prompt's text states; raise CorruptArtifact when they are missing or damaged."""
        data = read_checksummed(self.store, self._empty)
        if data is None:
            raise CorruptArtifact(
                "the empty prompt's states are missing", field=self._empty, fix="run the job again: it makes them again"
            )
        return load(data)

    @property
    def _empty(self) -> str:
        return f"{self.place}/empty.safetensors"

    def clear(self) -> None:
        """Delete everything: the dataset is published."""
        for key in self.store.keys(f"{self.place}/"):
            self.store.delete(key)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:HASH_DIGITS]
