"""The work area: finished pieces of an unfinished artifact in the store, from which a run that starts again goes on.

A piece is one object, such as a group of rows or a checkpoint, under a hash of its key and content. One that is corrupt
counts as missing, and is rebuilt. The whole area is deleted once the artifact is published.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ValidationError

from cluster.errors import CorruptArtifact
from cluster.hashing import config_hash
from cluster.store.artifacts import ArtifactStore
from cluster.store.checksummed import read_checksummed, write_checksummed
from jobs.run.artifacts import ArtifactRef
from safety.errors import ArtifactFormatError

logger = logging.getLogger(__name__)

Piece = TypeVar("Piece")
Group = TypeVar("Group")
Record = TypeVar("Record", bound=BaseModel)

GROUP_NAME = re.compile(r"groups/(\d{6,})\.parquet")
RERUN = "run the job again: it rebuilds what is missing"


class WorkArea:
    """The finished pieces of one artifact by name. It can be pickled, and travels to actors and workers.

    It is a ``safety.experts.checkpoint.CheckpointStore`` too.
    """

    def __init__(self, store: ArtifactStore, ref: ArtifactRef) -> None:
        self.store, self.place = store, f"work/{ref.kind}/{ref.id}/"

    def write(self, name: str, data: bytes) -> None:
        """Write a piece; another of this name is replaced."""
        write_checksummed(self.store, self.place + name, data)

    def read(self, name: str) -> bytes | None:
        """Return a piece, or None when it is missing or corrupt."""
        try:
            return read_checksummed(self.store, self.place + name)
        except CorruptArtifact:
            logger.warning("%s%s is corrupt and counts as missing", self.place, name)
            return None

    def load(self, name: str, parse: Callable[[bytes], Piece]) -> Piece | None:
        """Return a piece as parsed, or None when it is missing, corrupt, or another thing than ``parse`` reads.

        Args:
            name: The piece's name.
            parse: Raises ArtifactFormatError or pydantic's ValidationError for bytes that it cannot read.
        """
        data = self.read(name)
        try:
            return None if data is None else parse(data)
        except (ArtifactFormatError, ValidationError) as error:
            logger.warning("%s%s cannot be read and counts as missing: %s", self.place, name, error)
            return None

    def names(self, prefix: str = "") -> list[str]:
        """Return the names that begin with ``prefix``, sorted; a corrupt piece's is among them."""
        return [key.removeprefix(self.place) for key in self.store.keys(self.place + prefix)]

    def delete(self, name: str) -> None:
        """Delete a piece; it is no error when there is none."""
        self.store.delete(self.place + name)

    def clear(self) -> None:
        """Delete everything: the artifact is published."""
        for name in self.names():
            self.delete(name)


class NumberedGroups(Generic[Group]):
    """Finished groups of an artifact's rows, each one piece of its work area. It can be pickled for the actors."""

    def __init__(
        self, store: ArtifactStore, ref: ArtifactRef, dump: Callable[[Group], bytes], parse: Callable[[bytes], Group]
    ) -> None:
        """Use the work area of ``ref``.

        Args:
            store: Where it lies.
            ref: The unfinished artifact.
            dump: Writes a group; can be pickled.
            parse: Reads what ``dump`` writes and raises ArtifactFormatError for anything else; can be pickled.
        """
        self.area, self.dump, self.parse = WorkArea(store, ref), dump, parse

    def write(self, number: int, group: Group) -> None:
        """Write a finished group."""
        self.area.write(_group_name(number), self.dump(group))

    def read(self, number: int) -> Group:
        """Return a finished group; raise CorruptArtifact when it is missing or corrupt."""
        name = _group_name(number)
        found = self.area.load(name, self.parse)
        if found is None:
            raise CorruptArtifact("the group is missing or corrupt", field=self.area.place + name, fix=RERUN)
        return found

    def numbers(self) -> list[int]:
        """Return the numbers of the groups that there are, corrupt ones among them; other names are reported."""
        found = []
        for name in self.area.names("groups/"):
            known = GROUP_NAME.fullmatch(name)
            if known is None:
                logger.warning("%s%s is not a group and is ignored", self.area.place, name)
            else:
                found.append(int(known[1]))
        return found

    def all(self) -> Iterator[tuple[int, Group]]:
        """Yield the number and content of each finished group that is not corrupt."""
        for number in self.numbers():
            if (found := self.area.load(_group_name(number), self.parse)) is not None:
                yield number, found

    def verified(self) -> set[int]:
        """Return the numbers of the finished groups that are not corrupt."""
        return {number for number, _ in self.all()}

    def clear(self) -> None:
        """Delete everything: the artifact is published."""
        self.area.clear()


class Records:
    """Finished trials and rendered scores of one search, each one piece named by its parameters."""

    def __init__(self, store: ArtifactStore, ref: ArtifactRef) -> None:
        self.area = WorkArea(store, ref)

    def write(self, part: str, parameters: Mapping[str, Any], record: BaseModel) -> None:
        """Write a record."""
        self.area.write(_record_name(part, parameters), record.model_dump_json().encode())

    def read(self, part: str, parameters: Mapping[str, Any], kind: type[Record]) -> Record | None:
        """Return the record of these parameters, or None when there is none that can be read."""
        return self.area.load(_record_name(part, parameters), kind.model_validate_json)

    def all(self, part: str, kind: type[Record]) -> list[Record]:
        """Return every record of a part that can be read."""
        found = (self.area.load(name, kind.model_validate_json) for name in self.area.names(f"{part}/"))
        return [record for record in found if record is not None]


def _group_name(number: int) -> str:
    return f"groups/{number:06d}.parquet"


def _record_name(part: str, parameters: Mapping[str, Any]) -> str:
    return f"{part}/{config_hash(dict(parameters))[:24]}.json"
