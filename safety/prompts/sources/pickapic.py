"""Preference sets in pickapic form, with their pictures: parquet shards with ``caption, jpg_0, jpg_1, label_0``.

A row says which of two pictures is preferred under a caption. Safety sets have a pair's pictures in two rows, one under
the unsafe and one under the safe prompt, and the safe picture wins in both. The form does not say which caption is the
unsafe one, so the config must: by two columns, by a column of the side, or by the authors' CSV of captions.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import Field, model_validator

from safety.errors import ArtifactFormatError
from safety.parquet import ForeignParquet
from safety.prompts.pictures import Picture, picture_cells
from safety.prompts.sources.content import files_in, unreadable
from safety.prompts.sources.coprov2 import CoProV2Config, CoProV2Source
from safety.prompts.sources.source import (
    EMPTY,
    FIELD,
    NO_PICTURE,
    SourceConfig,
    SourceContent,
    SourceRow,
    sources,
    split_labels,
)

CAPTION, PICTURES, LABEL = "caption", ("jpg_0", "jpg_1"), "label_0"
SUFFIXES = (".parquet",)
NO_PREFERENCE, ONE_CAPTION, UNKNOWN_CAPTION = "no_preference", "one_caption", "unknown_caption"
SIDES = ("unsafe", "safe")


class PickapicConfig(SourceConfig):
    """Parquet shards, and what says which caption is the unsafe one."""

    source: Literal["pickapic"] = "pickapic"
    path: Path = Field(description="a shard, or a folder with shards in it, that all nodes see")
    unsafe: str | None = Field(None, description="column of the unsafe prompt, together with 'safe'")
    safe: str | None = Field(None, description="column of the safe prompt, together with 'unsafe'")
    side: str | None = Field(
        None,
        description="column that calls a row's caption 'unsafe' or 'safe'; the two rows are found by their pictures",
    )
    captions: Path | None = Field(
        None, description="CSV of the authors' CoProV2 form, which has the captions as pairs, with their categories"
    )
    category: str | None = Field(None, description="column of the category, or of several")
    all_category: str | None = Field(None, description="the category of every row, where no column says it")
    separator: str = Field(",", min_length=1, description="between several categories of one field")

    @model_validator(mode="after")
    def _has_one_way(self) -> PickapicConfig:
        if (self.unsafe is None) != (self.safe is None):
            raise ValueError("name both columns, 'unsafe' and 'safe', or neither")
        if sum(way is not None for way in (self.unsafe, self.side, self.captions)) != 1:
            raise ValueError("say which caption is the unsafe one: by 'unsafe' and 'safe', by 'side', or by 'captions'")
        return self

    @property
    def columns(self) -> tuple[str, ...]:
        """Return the columns that are read, the pictures' not among them."""
        named = (self.unsafe, self.safe, self.side, self.category)
        return (CAPTION, LABEL, *(name for name in named if name is not None))

    def files(self) -> tuple[Path, ...]:
        """Return the shards, and the CSV of captions."""
        shards = files_in(self.path, SUFFIXES, FIELD)
        return shards if self.captions is None else (*shards, self.captions)


class _Line(NamedTuple):
    """A row of a shard that prefers one of its pictures."""

    number: int
    fields: Mapping[str, Any]
    pictures: tuple[Picture, Picture]
    """The loser's and the winner's."""
    key: bytes
    """Equal in rows with the same pictures; nothing where they are not looked at."""


class _Prompts(NamedTuple):
    """The prompts of a pair."""

    unsafe: str
    safe: str
    labels: tuple[str, ...] = ()


@dataclass
class _Pair:
    """The rows that have a pair's two pictures."""

    first: _Line
    captions: dict[str, str] = field(default_factory=dict)
    """By the side where a column says it, else by themselves."""
    lines: int = 0


@sources.register("pickapic")
class PickapicSource:
    """Reads pairs with their pictures, each once, in the order of the shards."""

    config_type = PickapicConfig

    @staticmethod
    def read(config: PickapicConfig) -> SourceContent:
        """Return the pairs; a row without a preference, a caption or a picture is refused.

        Raises:
            ArtifactFormatError: There is no shard, one is no parquet file, or a column is missing.
        """
        content = SourceContent([], 0, encoding="parquet")
        lines = _lines(config, content)
        if config.unsafe is not None:
            _by_columns(config, lines, content)
        else:
            _by_pictures(config, lines, content)
        content.merged = content.lines - len(content.rows) - content.refused.total()
        return content


def _lines(config: PickapicConfig, content: SourceContent) -> Iterator[_Line]:
    """Yield the rows that have a caption and a preference, and count all."""
    for path in files_in(config.path, SUFFIXES, FIELD):
        try:
            shard = ForeignParquet(path.resolve(), field=FIELD)
        except OSError as error:
            raise unreadable(path, error, FIELD) from None
        missing = [name for name in (*config.columns, *PICTURES) if name not in shard.columns]
        if missing:
            raise ArtifactFormatError(
                f"{path.name}: no column {', '.join(map(repr, missing))} among {', '.join(map(repr, shard.columns[:20]))}",
                field=FIELD,
                fix="name shards of the pickapic form, and columns that they have",
            )
        for group in range(shard.row_groups):
            yield from _group_lines(config, shard, group, content)


def _group_lines(config: PickapicConfig, shard: ForeignParquet, group: int, content: SourceContent) -> Iterator[_Line]:
    rows = shard.read(group, config.columns).to_pylist()
    # Two columns say which rows are a pair; else only their pictures do.
    keys = ((b"", b""),) * len(rows) if config.unsafe is not None else _picture_keys(shard, group)
    for number, (fields, key) in enumerate(zip(rows, keys, strict=True)):
        content.lines += 1
        label = fields[LABEL]
        if not str(fields[CAPTION] or "").strip():
            content.refused[EMPTY] += 1
        elif label not in (0, 1):
            content.refused[NO_PREFERENCE] += 1
        elif None in key:
            content.refused[NO_PICTURE] += 1
        else:
            cells = [Picture(file=str(shard.path), column=name, row_group=group, row=number) for name in PICTURES]
            loser, winner = (1, 0) if label == 1 else (0, 1)
            both = (key[loser] or b"") + (key[winner] or b"")
            yield _Line(content.lines, fields, (cells[loser], cells[winner]), both)


def _picture_keys(shard: ForeignParquet, group: int) -> tuple[tuple[bytes | None, ...], ...]:
    """Return the SHA-256 of each row's two pictures; None where there is none."""
    return _hashed(shard.path, shard.path.stat().st_mtime_ns, group)


# Each stage of a run reads its prompts, and the pictures of a set are gigabytes.
@lru_cache(maxsize=1 << 14)
def _hashed(path: Path, _modified: int, group: int) -> tuple[tuple[bytes | None, ...], ...]:
    table = ForeignParquet(path, field=FIELD).read(group, PICTURES)
    columns = [
        [
            hashlib.sha256(cell.as_buffer()).digest() if cell.is_valid else None
            for cell in picture_cells(table.column(name))
        ]
        for name in PICTURES
    ]
    return tuple(zip(*columns, strict=True))


def _by_columns(config: PickapicConfig, lines: Iterable[_Line], content: SourceContent) -> None:
    """Add a pair for each distinct two prompts."""
    seen: set[tuple[str, str]] = set()
    for line in lines:
        texts = tuple(str(line.fields[str(name)] or "").strip() for name in (config.unsafe, config.safe))
        unsafe, safe = texts
        if not all(texts):
            content.refused[EMPTY] += 1
        elif (unsafe, safe) not in seen:
            seen.add((unsafe, safe))
            content.rows.append(_row(config, line, unsafe, safe))


def _by_pictures(config: PickapicConfig, lines: Iterable[_Line], content: SourceContent) -> None:
    """Add a pair for the rows that have the same pictures, where their captions' sides are known."""
    known = None if config.captions is None else _Captions(config.captions, config.encoding)
    pairs: dict[bytes, _Pair] = {}
    for line in lines:
        pair = pairs.setdefault(line.key, _Pair(line))
        caption = str(line.fields[CAPTION]).strip()
        side = caption if config.side is None else str(line.fields[config.side]).strip().lower()
        pair.captions.setdefault(side, caption)
        pair.lines += 1
    for pair in pairs.values():
        found = _by_side(pair) if known is None else known.find(list(pair.captions.values()))
        if found is None:
            content.refused[ONE_CAPTION if known is None else UNKNOWN_CAPTION] += pair.lines
        else:
            content.rows.append(_row(config, pair.first, found.unsafe, found.safe, found.labels))


def _by_side(pair: _Pair) -> _Prompts | None:
    """Return a pair's prompts where it has both."""
    unsafe, safe = (pair.captions.get(side) for side in SIDES)
    return None if unsafe is None or safe is None else _Prompts(unsafe, safe)


def _row(config: PickapicConfig, line: _Line, unsafe: str, safe: str, labels: tuple[str, ...] = ()) -> SourceRow:
    if config.all_category is not None:
        labels = (config.all_category,)
    elif config.category is not None:
        labels = split_labels(line.fields[config.category], config.separator)
    return SourceRow(line.number, unsafe, safe, labels, pictures=line.pictures)


class _Captions:
    """The authors' pairs by their prompts."""

    def __init__(self, path: Path, encoding: str | None) -> None:
        rows = CoProV2Source.read(CoProV2Config(path=path, encoding=encoding)).rows
        pairs = [_Prompts(row.prompt, row.safe, row.labels) for row in rows if row.safe is not None]
        self._pairs = {(pair.unsafe, pair.safe): pair for pair in pairs}
        counts = Counter(caption for pair in pairs for caption in (pair.unsafe, pair.safe))
        # One caption alone names a pair where it stands in no other one.
        self._alone = {caption: pair for pair in pairs for caption in (pair.unsafe, pair.safe) if counts[caption] == 1}

    def find(self, captions: Sequence[str]) -> _Prompts | None:
        """Return the pair with these captions, or with this one; None where there is none, or several with one caption."""
        if len(captions) == 1:
            return self._alone.get(captions[0])
        ordered = ((unsafe, safe) for unsafe in captions for safe in captions if unsafe != safe)
        return next((self._pairs[pair] for pair in ordered if pair in self._pairs), None)
