"""Text files as spreadsheets and editors write them: their encoding is found, and a CSV's separator by its header."""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from safety.errors import ArtifactFormatError
from safety.prompts.sources.content import unreadable

MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
FALLBACK = "cp1252"
"""What spreadsheets of western languages write without a mark; its five unused bytes make other files an error."""
WESTERN = frozenset(
    "\u20ac\u2026\u2018\u2019\u201c\u201d\u2013\u2014\u00ab\u00bb\u00a0\u00a1\u00bf\u00b0\u2122\u00a9\u00ae"
    "\u00c0\u00c1\u00c2\u00c4\u00c5\u00c6\u00c7\u00c8\u00c9\u00ca\u00cb\u00cd\u00ce\u00d1\u00d3\u00d4\u00d6\u00d8\u00da\u00dc"
    "\u00df\u00e0\u00e1\u00e2\u00e3\u00e4\u00e5\u00e6\u00e7\u00e8\u00e9\u00ea\u00eb\u00ec\u00ed\u00ee\u00ef\u00f1\u00f2\u00f3\u00f4\u00f5"
    "\u00f6\u00f8\u00f9\u00fa\u00fb\u00fc\u0152\u0153"
)
"""Letters and signs that western texts have beyond ASCII."""
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


def read_text(path: Path, field: str, encoding: str | None = None) -> Text:
    """Return a file's text: in the encoding that is given; else UTF-8 or UTF-16 by its mark, else UTF-8.

    A file that is none of these is Windows-1252 only where its text speaks for it: another code page would be read as well,
    and wrongly.

    Raises:
        ArtifactFormatError: The file cannot be read, or is in none of these.
    """
    data = _read(path, field)
    marked = next((name for mark, name in MARKS if data.startswith(mark)), None)
    named = encoding or marked
    for name in (named,) if named else ("utf-8", FALLBACK):
        try:
            text = data.decode(name)
        except UnicodeError:
            continue
        if "\0" not in text and (name != FALLBACK or named is not None or _is_western(text)):
            return Text(text, name)
    raise ArtifactFormatError(
        f"{path} is no text in {named or 'UTF-8, UTF-16 with a mark, or Windows-1252'}",
        field=field,
        fix="save it as UTF-8, or name its encoding, such as encoding: cp1250, cp1251, gb18030 or mac_roman",
    )


def _is_western(text: str) -> bool:
    """Return whether what a text has beyond ASCII is what western languages have, and no more than half of its words' letters.

    A Cyrillic or Chinese page read as Windows-1252 has such words whole, a Central European, Turkish or Macintosh one has
    signs among them that no western word has.
    """
    words = [word for word in re.findall(r"\S+", text) if not word.isascii()]
    letters = [c for word in words for c in word if c.isalpha()]
    plain = sum(c.isascii() for c in letters)
    others = {c for c in "".join(words) if not c.isascii()}
    return plain * 2 >= len(letters) and others <= WESTERN


def _read(path: Path, field: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise unreadable(path, error, field) from None


def read_lines(path: Path, field: str, encoding: str | None = None) -> tuple[list[str], str]:
    """Return a file's lines as an editor shows them, and its encoding; raises as ``read_text`` does.

    Lines end with a line feed, a carriage return or both. Other separators that Unicode knows are part of the text.
    """
    text, encoding = read_text(path, field, encoding)
    return [line.removesuffix("\n") for line in io.StringIO(text, newline=None)], encoding


def read_csv(path: Path, columns: Sequence[str], field: str, encoding: str | None = None) -> tuple[Iterator[Line], str]:
    """Return a CSV's records, of which at least the named columns are there, and its encoding.

    The separator is the one of comma, semicolon and tab that finds the columns in the header. Empty lines before it, and
    the line ``sep=;`` by which spreadsheets name the separator, are passed over.

    Raises:
        ArtifactFormatError: A column is missing or there twice, or a record is no CSV; also while the records are read.
    """
    text, encoding = read_text(path, field, encoding)
    headers = {separator: _header(path, text, separator, field) for separator in SEPARATORS}
    for separator, names in headers.items():
        if set(columns) <= set(names):
            doubled = [name for name in dict.fromkeys(columns) if names.count(name) > 1]
            if doubled:
                raise ArtifactFormatError(
                    f"{path.name}, line 1: the column {doubled[0]!r} is there {names.count(doubled[0])} times",
                    field=field,
                    fix="give each column its own name",
                )
            return _records(path, text, names, separator, field), encoding
    # The separator that gives the most columns is most likely the file's own.
    names = max(headers.values(), key=len)
    missing = [name for name in columns if name not in names]
    raise ArtifactFormatError(
        f"{path.name}, line 1: no column {', '.join(map(repr, missing))} among {', '.join(map(repr, names[:12]))}",
        field=field,
        fix="name the columns that the file has",
    )


def _header(path: Path, text: str, separator: str, field: str) -> list[str]:
    # Not strictly: of a header in quotes another separator than the file's own makes an error.
    return next((line.values for line in _lines(path, text, separator, field, strict=False)), [])


class _Values(NamedTuple):
    number: int
    values: list[str]


def _lines(path: Path, text: str, separator: str, field: str, *, strict: bool = True) -> Iterator[_Values]:
    """Yield a CSV's records that are not empty, without spaces around their fields, the header first."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=strict)
    before = csv.field_size_limit(MOST_IN_FIELD)
    try:
        for values in reader:
            first = reader.line_num == 1 and "".join(values).startswith("sep=")
            if values and not first:
                yield _Values(reader.line_num, [value.strip() for value in values])
    except csv.Error as error:
        raise ArtifactFormatError(
            f"{path.name}, line {reader.line_num}: {error}", field=field, fix="close the quotes of each field"
        ) from None
    finally:
        csv.field_size_limit(before)


def _records(path: Path, text: str, names: Sequence[str], separator: str, field: str) -> Iterator[Line]:
    lines = _lines(path, text, separator, field)
    next(lines)
    for number, values in lines:
        if len(values) > len(names):
            raise ArtifactFormatError(
                f"{path.name}, line {number}: {len(values)} fields under {len(names)} columns",
                field=field,
                fix="put texts with a separator in quotes",
            )
        filled = [*values, *[""] * (len(names) - len(values))]
        yield Line(number, dict(zip(names, filled, strict=True)))
