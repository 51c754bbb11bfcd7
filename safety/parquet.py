"""Parquet files read by a declared schema. No other file of the project opens one; ruff's banned API holds that.

A parquet file carries the Arrow schema of its writer, from which Arrow revives registered extension types. Ray Data
registers some whose values are unpickled when they are read, so that in a process with Ray Data a file of an unknown
writer could run code. Here the writer's schema is looked at as data, before any value is read, and is never revived.
"""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from safety.errors import ArtifactFormatError, SchemaError

STORED, HIDDEN = b"ARROW:schema", b"arrow.schema"
"""The key of the writer's schema in a parquet footer, and a key of the same length that Arrow does not know."""
EXTENSION, PLAIN = b"ARROW:extension:", b"arrow.extension:"
"""The same for the marks of an extension type in that schema."""
MAGIC, TAIL = b"PAR1", 8
"""The first bytes of a file, and how many stand behind its footer: its length and the same magic number."""


def read_parquet(source: Path | bytes, schema: pa.Schema, *, misfit: str, field: str, fix: str) -> pa.Table:
    """Read a file that has the columns of ``schema`` and no other.

    Args:
        source: The file, or its bytes.
        schema: The names and types of all columns.
        misfit: The errors' beginning, which names the file, such as "prompts.parquet holds no prompts".
        field: Their field.
        fix: Their fix.

    Returns:
        The table in the schema's order of columns; its metadata is the file's.

    Raises:
        SchemaError: A column is of an extension type or of another type than declared, is undeclared, or is missing.
        ArtifactFormatError: It is no parquet file, or is damaged.
    """
    try:
        data = source if isinstance(source, bytes) else source.read_bytes()
        file = pq.ParquetFile(pa.BufferReader(_with_hidden_schema(data)), arrow_extensions_enabled=False)
        metadata = dict(file.metadata.metadata or {})
        problems = _extension_types(metadata.pop(HIDDEN, b"")) or _differences(file.schema_arrow, schema)
        if problems:
            raise SchemaError(f"{misfit}: {'; '.join(problems)}", field=field, fix=fix)
        return file.read(columns=schema.names).select(schema.names).cast(schema).replace_schema_metadata(metadata)
    except (pa.ArrowException, ValueError, OSError) as error:
        raise ArtifactFormatError(f"{misfit}: {error}", field=field, fix=fix) from error


class ForeignParquet:
    """A file of another writer, of whatever columns, read by row groups.

    Its values are plain (numbers, text, bytes, lists, structs): the writer's schema is hidden, so no type is revived.
    """

    def __init__(self, path: Path, *, field: str) -> None:
        """Read the footer and nothing else; raises as ``_open_foreign`` does. ``field`` is the errors' field."""
        self.path, self.field = path, field
        self._file = _open_foreign(path, field)

    @property
    def columns(self) -> list[str]:
        """Return the columns' names."""
        return list(self._file.schema_arrow.names)

    @property
    def row_groups(self) -> int:
        """Return the number of row groups."""
        return int(self._file.num_row_groups)

    def read(self, row_group: int, columns: Sequence[str]) -> pa.Table:
        """Return some columns of a row group; raise ArtifactFormatError when it is damaged."""
        try:
            return self._file.read_row_group(row_group, columns=list(columns))
        except (pa.ArrowException, ValueError, OSError) as error:
            raise ArtifactFormatError(
                f"{self.path} is damaged in row group {row_group}: {error}", field=self.field, fix="fetch it again"
            ) from error


def _open_foreign(path: Path, field: str) -> pq.ParquetFile:
    """Open a file with its writer's schema hidden.

    Raises:
        OSError: It cannot be read.
        ArtifactFormatError: It is no parquet file, or its footer is damaged.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - TAIL))
            length = TAIL + int.from_bytes(file.read()[-TAIL : 4 - TAIL], "little")
            file.seek(max(0, size - length))
            footer = file.read()
        # A file of the magic number and the footer alone: offsets in it are not followed.
        metadata = pq.read_metadata(pa.BufferReader(MAGIC + footer.replace(STORED, HIDDEN)))
        return pq.ParquetFile(pa.memory_map(str(path)), metadata=metadata, arrow_extensions_enabled=False)
    except (pa.ArrowException, ValueError) as error:
        raise ArtifactFormatError(
            f"{path} is no parquet file: {error}", field=field, fix="name parquet files"
        ) from error


def _with_hidden_schema(data: bytes) -> bytes:
    """Return a file whose footer hides the writer's schema from Arrow, which would revive its types on opening."""
    footer = max(0, len(data) - TAIL - int.from_bytes(data[-TAIL : 4 - TAIL], "little"))
    return data[:footer] + data[footer:].replace(STORED, HIDDEN)


def _extension_types(stored: bytes) -> list[str]:
    """Return a line for each column of an extension type in a writer's schema, read without reviving the types."""
    if not stored:
        return []
    plain = base64.b64decode(stored, validate=True).replace(EXTENSION, PLAIN)
    return [
        f"column {column.name!r} is of the extension type {_name(found)!r}, whose values could run code when they are read"
        for column in pa.ipc.read_schema(pa.py_buffer(plain))
        if (found := _marks(column))
    ]


def _marks(column: Any) -> dict[bytes, bytes]:
    """Return the marks of an extension type that a column, or a part of it, carries."""
    own = {key: value for key, value in (column.metadata or {}).items() if key.startswith(PLAIN)}
    parts = (column.type.field(number) for number in range(column.type.num_fields))
    return own or next(filter(None, map(_marks, parts)), {})


def _name(marks: dict[bytes, bytes]) -> str:
    return marks.get(PLAIN + b"name", b"?").decode(errors="replace")


def _differences(found: pa.Schema, declared: pa.Schema) -> list[str]:
    """Return a line for each column that is missing, undeclared, doubled or of another type."""
    counts = Counter(found.names)
    lines = [f"column {name!r} is missing" for name in declared.names if name not in counts]
    lines += [f"column {name!r} is not declared" for name in counts if name not in declared.names]
    lines += [f"column {name!r} is there {count} times" for name, count in counts.items() if count > 1]
    return lines or [
        f"column {column.name!r} is of the type {found.field(column.name).type} instead of {column.type}"
        for column in declared
        if found.field(column.name).type != column.type
    ]
