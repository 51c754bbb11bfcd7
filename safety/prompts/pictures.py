"""Pictures that a prompt source has of its rows: named by where they lie, and read where a row would be rendered."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
from pydantic import Field

from safety.base import Config
from safety.errors import ConfigError
from safety.parquet import ForeignParquet

FIELD = "prompts.path"
COLUMNS_HELD = 2
"""Columns of a row group that stay in memory: a pair's two pictures, for the rows beside it."""


class Picture(Config):
    """Where one picture lies: a file of its own, or a cell of a parquet file."""

    file: str = Field(description="absolute path")
    column: str | None = Field(None, description="of a parquet file; None: the file is the picture")
    row_group: int = Field(0, ge=0)
    row: int = Field(0, ge=0, description="within the row group")

    def read(self) -> bytes:
        """Return the encoded picture; nothing where the cell is empty.

        Raises:
            ConfigError: This process cannot read the file.
            ArtifactFormatError: It is no parquet file, or damaged.
        """
        try:
            if self.column is None:
                return Path(self.file).read_bytes()
            cell = _column(self.file, self.row_group, self.column)[self.row].as_py()
            return bytes(cell or b"")
        except OSError as error:
            raise ConfigError(
                f"{self.file} cannot be read where rows are made: {error.strerror or error}",
                field=FIELD,
                fix="put the sources' pictures under a path that all nodes see",
            ) from None


@lru_cache(maxsize=COLUMNS_HELD)
def _column(file: str, row_group: int, column: str) -> pa.ChunkedArray:
    return picture_cells(ForeignParquet(Path(file), field=FIELD).read(row_group, [column]).column(column))


def picture_cells(column: Any) -> pa.ChunkedArray:
    """Return a column of pictures as bytes, whether it holds them so or as structs of ``bytes`` and ``path``."""
    if pa.types.is_struct(column.type):
        return pa.chunked_array([chunk.field("bytes") for chunk in column.chunks], pa.binary())
    return column
