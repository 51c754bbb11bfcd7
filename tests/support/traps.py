"""Parquet files that run code when Ray Data's pickled columns are read; the code only writes a marker file."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from ray.data._internal.object_extensions.arrow import ArrowPythonObjectArray


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.open, (str(self.marker), os.O_CREAT)


def pickled(marker: Path) -> Any:
    """Return a column of one row that runs the trap when it is read."""
    return ArrowPythonObjectArray.from_objects([Trap(marker)])


def in_a_list(marker: Path) -> Any:
    """Return a column of one row, a list that holds such a value."""
    return pa.ListArray.from_arrays([0, 1], pickled(marker))


def as_parquet(columns: dict[str, Any], metadata: dict[str, str] | None = None) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), buffer)
    return buffer.getvalue()


def trapped(data: bytes, column: str, trap: Any) -> bytes:
    """Return a parquet file of one row with one of its columns replaced by a trap, or with one more."""
    table = pq.read_table(io.BytesIO(data))
    columns = {name: table.column(name) for name in table.column_names} | {column: trap}
    return as_parquet(columns, {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()})
