"""Text files as spreadsheets and editors write them: their encoding is found, and a CSV's separator by its header."""

from __future__ import annotations

import codecs
import csv
import hashlib
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from safety.errors import ArtifactFormatError

MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
FALLBACK = "cp1252"
"""What spreadsheets of western languages write without a mark; its five unused bytes make other files an error."""
SEPARATORS = (",", ";", "\t")
MOST_IN_FIELD = 1 << 20
"""Characters of one field: a quote that is never closed would swallow the file."""


class Text(NamedTuple):
    """A decoded file."""

    text: str
    encoding: str


class Line(NamedTuple):
    """One record of a CSV: where it ends in the file, and its fields by column."""

    number: int
    fields: dict[str, str]


def file_hash(path: Path, field: str) -> str:
    """Return the SHA-256 of a file, as 64 hex digits; raise ArtifactFormatError when it cannot be read."""
    return hashlib.sha256(_read(path, field)).hexdigest()


def read_text(path: Path, field: str) -> Text:
    """Return a file's text: UTF-8 or UTF-16 by its mark, else UTF-8, else Windows-1252.

    Raises:
        ArtifactFormatError: The file cannot be read, or is in none of these.
    """
    data = _read(path, field)
    marked = next((encoding for mark, encoding in MARKS if data.startswith(mark)), None)
    for encoding in (marked,) if marked else ("utf-8", FALLBACK):
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError:
            continue
        if "\0" in text:
            break
        return Text(text, encoding)
    raise ArtifactFormatError(
        f"{path} is no text in UTF-8, UTF-16 with a mark, or Windows-1252", field=field, fix="save it as UTF-8"
    )


def _read(path: Path, field: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ArtifactFormatError(
            f"{path} cannot be read: {error.strerror}", field=field, fix="name a file that exists"
        ) from None


def read_csv(path: Path, columns: Sequence[str], field: str) -> tuple[Iterator[Line], str]:
    """Return a CSV's records, of which at least the named columns are there, and its encoding.

    The separator is the one of comma, semicolon and tab that finds the columns in the header.

    Raises:
        ArtifactFormatError: A column is missing, or a record is no CSV; also while the records are read.
    """
    text, encoding = read_text(path, field)
    header = text.partition("\n")[0]
    for separator in SEPARATORS:
        names = [name.strip() for name in next(csv.reader([header], delimiter=separator), [])]
        if set(columns) <= set(names):
            return _records(path, text, names, separator, field), encoding
    names = next(csv.reader([header]), [])
    missing = [name for name in columns if name not in names]
    raise ArtifactFormatError(
        f"{path.name}, line 1: no column {', '.join(map(repr, missing))} among {', '.join(map(repr, names[:12]))}",
        field=field,
        fix="name the columns that the file has",
    )


def _records(path: Path, text: str, names: Sequence[str], separator: str, field: str) -> Iterator[Line]:
    before = csv.field_size_limit(MOST_IN_FIELD)
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        next(reader)
        for values in reader:
            if not values:
                continue
            if len(values) > len(names):
                raise ArtifactFormatError(
                    f"{path.name}, line {reader.line_num}: {len(values)} fields under {len(names)} columns",
                    field=field,
                    fix="put texts with a separator in quotes",
                )
            filled = [*values, *[""] * (len(names) - len(values))]
            yield Line(reader.line_num, {name: value.strip() for name, value in zip(names, filled, strict=True)})
    except csv.Error as error:
        raise ArtifactFormatError(
            f"{path.name}, line {reader.line_num}: {error}", field=field, fix="close the quotes of each field"
        ) from None
    finally:
        csv.field_size_limit(before)
