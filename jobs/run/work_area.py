"""Small finished pieces of a running stage, in the store's work area: who starts again reads them back."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from cluster.errors import CorruptArtifact
from cluster.hashing import config_hash
from cluster.store.artifacts import ArtifactStore
from cluster.store.checksummed import read_checksummed, write_checksummed


def require_finished(wanted: Iterable[int], there: Container[int], place: str) -> None:
    """Raise CorruptArtifact when finished groups have gone from ``place`` before they were put together."""
    gone = [number for number in wanted if number not in there]
    if gone:
        raise CorruptArtifact(
            f"{len(gone)} finished groups are gone, the first is {gone[0]}",
            field=place,
            fix="run the job again: it makes them again",
        )


Record = TypeVar("Record", bound=BaseModel)


@dataclass(frozen=True)
class Records:
    """Finished trials and confirmations of one search, by their parameters."""

    store: ArtifactStore
    place: str

    def write(self, part: str, parameters: Mapping[str, Any], record: BaseModel) -> None:
        """Keep a record."""
        write_checksummed(self.store, self._key(part, parameters), record.model_dump_json().encode())

    def read(self, part: str, parameters: Mapping[str, Any], kind: type[Record]) -> Record | None:
        """Return the record of these parameters, or None when there is none that can be read."""
        return self._read(self._key(part, parameters), kind)

    def all(self, part: str, kind: type[Record]) -> list[Record]:
        """Return every record of a part that can be read; a damaged one counts as not there."""
        found = (self._read(key, kind) for key in self.store.keys(f"{self.place}/{part}/"))
        return [record for record in found if record is not None]

    def _read(self, key: str, kind: type[Record]) -> Record | None:
        try:
            data = read_checksummed(self.store, key)
            return None if data is None else kind.model_validate_json(data)
        except (CorruptArtifact, ValidationError):
            return None

    def _key(self, part: str, parameters: Mapping[str, Any]) -> str:
        return f"{self.place}/{part}/{config_hash(dict(parameters))[:24]}.json"
