"""The work area: finished pieces of an unfinished artifact in the store, from which a run that starts again goes on.

A piece is one object, such as a group of rows or a checkpoint, under a hash of its key and content. One that is corrupt
counts as missing, and is rebuilt; one whose columns are another writer's stops the run. Keys that are no pieces are
named in the log and ignored. The whole area is deleted once the artifact is published.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ValidationError

from cluster.errors import CorruptArtifact
from cluster.hashing import config_hash
from cluster.store.artifacts import ArtifactStore
from cluster.store.checksummed import read_checksummed, write_checksummed, write_checksummed_once
from jobs.run.artifacts import ArtifactRef
from safety.errors import ArtifactFormatError, SchemaError

logger = logging.getLogger(__name__)

Piece = TypeVar("Piece")
Group = TypeVar("Group")
Record = TypeVar("Record", bound=BaseModel)

GROUP_NAME = re.compile(r"groups/([0-9]{6,})\.(?:parquet|json)")
RECORD_DIGITS = 24
RECORD_NAME = re.compile(rf"[a-z]+/[0-9a-f]{{{RECORD_DIGITS}}}\.json")
READERS = 16
"""Pieces read, or deleted, at once: a store far away answers each in some ten milliseconds."""
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

    def write_once(self, name: str, data: bytes, parse: Callable[[bytes], object]) -> None:
        """Write a finished piece unless one that ``parse`` can read is there: it is of an earlier or another writer.

        Raises:
            SchemaError: What is there has another writer's columns; ``load`` raises it too.
        """
        wrote = write_checksummed_once(
            self.store, self.place + name, data, lambda found: self._parsed(name, found, parse) is not None
        )
        if not wrote:
            logger.info("%s%s was finished before and is kept", self.place, name)

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

        Raises:
            SchemaError: The piece has other columns than a run writes. Its hash is right, so it is no accident, and it
                is left where it is.
        """
        data = self.read(name)
        return None if data is None else self._parsed(name, data, parse)

    def _parsed(self, name: str, data: bytes, parse: Callable[[bytes], Piece]) -> Piece | None:
        key = self.place + name
        try:
            return parse(data)
        except SchemaError as error:
            raise SchemaError(
                f"{error.message}; no run writes that",
                field=key,
                fix="find out who writes there, and delete the object",
            ) from error
        except (ArtifactFormatError, ValidationError) as error:
            logger.warning("%s cannot be read and counts as missing: %s", key, error)
            return None

    def names(self, prefix: str = "") -> list[str]:
        """Return the names that begin with ``prefix``, sorted; a corrupt piece's is among them."""
        return [key.removeprefix(self.place) for key in self.store.keys(self.place + prefix)]

    def delete(self, name: str) -> None:
        """Delete a piece; it is no error when there is none."""
        self.store.delete(self.place + name)

    def clear(self) -> None:
        """Delete everything: the artifact is published."""
        with ThreadPoolExecutor(READERS) as pool:
            list(pool.map(self.delete, self.names()))


class NumberedGroups(Generic[Group]):
    """Finished groups of an artifact's rows, each one piece of its work area. It can be pickled for the actors."""

    def __init__(
        self,
        store: ArtifactStore,
        ref: ArtifactRef,
        dump: Callable[[Group], bytes],
        parse: Callable[[bytes], Group],
        suffix: str = "parquet",
    ) -> None:
        """Use the work area of ``ref``.

        Args:
            store: Where it lies.
            ref: The unfinished artifact.
            dump: Writes a group; can be pickled.
            parse: Reads what ``dump`` writes and raises ArtifactFormatError or pydantic's ValidationError for anything
                else; can be pickled.
            suffix: Of the pieces' names: "parquet" or "json".
        """
        self.area, self.dump, self.parse, self.suffix = WorkArea(store, ref), dump, parse, suffix

    def write(self, number: int, group: Group) -> None:
        """Write a finished group; one that is there already and can be read is kept."""
        self.area.write_once(self._name(number), self.dump(group), self.parse)

    def read(self, number: int) -> Group:
        """Return a finished group; raise CorruptArtifact when it is missing or corrupt."""
        name = self._name(number)
        found = self.area.load(name, self.parse)
        if found is None:
            raise CorruptArtifact("the group is missing or corrupt", field=self.area.place + name, fix=RERUN)
        return found

    def numbers(self) -> list[int]:
        """Return the numbers of the groups that there are, corrupt ones among them; other names are reported."""
        found = []
        for name in self.area.names("groups/"):
            known = GROUP_NAME.fullmatch(name)
            if known is None or self._name(int(known[1])) != name:
                logger.warning("%s%s is not a group and is ignored", self.area.place, name)
            else:
                found.append(int(known[1]))
        return found

    def all(self) -> Iterator[tuple[int, Group]]:
        """Yield the number and content of each finished group that is not corrupt, several read at once."""
        numbers = self.numbers()
        with ThreadPoolExecutor(READERS) as readers:
            read = readers.map(lambda number: self.area.load(self._name(number), self.parse), numbers)
            for number, found in zip(numbers, read, strict=True):
                if found is not None:
                    yield number, found

    def verified(self) -> set[int]:
        """Return the numbers of the finished groups that are not corrupt."""
        return {number for number, _ in self.all()}

    def clear(self) -> None:
        """Delete everything: the artifact is published."""
        self.area.clear()

    def _name(self, number: int) -> str:
        return f"groups/{number:06d}.{self.suffix}"


class Records:
    """Finished trials and rendered scores of one search, each one piece named by its parameters."""

    def __init__(self, store: ArtifactStore, ref: ArtifactRef) -> None:
        self.area = WorkArea(store, ref)

    def write(self, part: str, parameters: Mapping[str, Any], record: BaseModel) -> None:
        """Write a record; one that is there already and can be read is kept."""
        name, kind = _record_name(part, parameters), type(record)
        self.area.write_once(name, record.model_dump_json().encode(), kind.model_validate_json)

    def read(self, part: str, parameters: Mapping[str, Any], kind: type[Record]) -> Record | None:
        """Return the record of these parameters, or None when there is none that can be read."""
        return self.area.load(_record_name(part, parameters), kind.model_validate_json)

    def all(self, part: str, kind: type[Record]) -> list[Record]:
        """Return every record of a part that can be read; other names are reported."""
        found = []
        for name in self.area.names(f"{part}/"):
            if RECORD_NAME.fullmatch(name) is None:
                logger.warning("%s%s is not a record and is ignored", self.area.place, name)
            elif (record := self.area.load(name, kind.model_validate_json)) is not None:
                found.append(record)
        return found


def _record_name(part: str, parameters: Mapping[str, Any]) -> str:
    return f"{part}/{config_hash(dict(parameters))[:RECORD_DIGITS]}.json"
