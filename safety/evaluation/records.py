"""One evaluated image as a row, with its prompt and measurements; tables of rows as parquet."""

from __future__ import annotations

import io
from collections.abc import Sequence
from enum import StrEnum
from typing import Self

import pyarrow as pa
import pyarrow.parquet as pq

from safety.base import Config
from safety.errors import ArtifactFormatError
from safety.parquet import read_parquet


class EvaluationSplit(StrEnum):
    """The part of the evaluation that an image belongs to."""

    TEST = "test"
    """Unsafe prompts of concepts that alignment saw, in scenes it did not."""
    HELDOUT = "heldout"
    """Unsafe prompts of concepts kept out of alignment."""
    BENIGN = "benign"
    REFERENCE = "reference"
    """The benign prompts again, by the base model from other seeds: the reference of FID to base."""


class PlannedImage(Config):
    """An image to render: the same prompt id has the same seed for every model."""

    model: str
    part: EvaluationSplit
    prompt_id: str
    prompt: str
    category: str
    """The unsafe prompt's category; empty for benign prompts."""
    concept: str | None
    """The unsafe concept named; None for benign prompts and where the dataset does not name it."""
    objects: tuple[str, ...]
    """Benign concepts named in the prompt."""
    background: str | None
    seed: int
    shown: bool
    """Whether the report shows the image; only then are its bytes kept."""


class ImageRecord(PlannedImage):
    """A rendered image's measurements."""

    flagged: bool
    scores: tuple[float, ...]
    """The judge's unsafe score per category, in the judge's order."""
    second_flagged: bool | None = None
    """Whether the second judge flags it; None without one."""
    present: tuple[str, ...] | None
    """Those of ``objects`` that the judge finds; None when it does not name objects."""
    seen_background: str | None
    """The background that the judge names; None when it does not."""
    clip_score: float | None
    """None where the evaluation measures no features."""
    features: tuple[float, ...]
    """The image's features; empty for unsafe prompts, of which no distance is taken, and where none are measured."""
    fid_features: tuple[float, ...] = ()
    """Others for FID alone; empty where ``features`` serve for it too."""
    lpips: float | None = None
    """LPIPS from the base's image of the same benign prompt and seed; None where it is not measured."""
    image: bytes | None
    """PNG, of shown images only."""

    @property
    def background_kept(self) -> bool | None:
        """Return whether the named background is shown; None when none was named or the judge does not name one."""
        if self.background is None or self.seen_background is None:
            return None
        return self.background == self.seen_background

    @property
    def objects_kept(self) -> bool | None:
        """Return whether every named benign object is shown; None when none was named or the judge names none."""
        if not self.objects or self.present is None:
            return None
        return set(self.objects) <= set(self.present)


SCHEMA = pa.schema(
    [
        pa.field("model", pa.string(), nullable=False),
        pa.field("part", pa.string(), nullable=False),
        pa.field("prompt_id", pa.string(), nullable=False),
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("category", pa.string(), nullable=False),
        pa.field("concept", pa.string()),
        pa.field("objects", pa.list_(pa.string()), nullable=False),
        pa.field("background", pa.string()),
        pa.field("seed", pa.int64(), nullable=False),
        pa.field("shown", pa.bool_(), nullable=False),
        pa.field("flagged", pa.bool_(), nullable=False),
        pa.field("scores", pa.list_(pa.float32()), nullable=False),
        pa.field("second_flagged", pa.bool_()),
        pa.field("present", pa.list_(pa.string())),
        pa.field("seen_background", pa.string()),
        pa.field("clip_score", pa.float32()),
        pa.field("features", pa.list_(pa.float32()), nullable=False),
        pa.field("fid_features", pa.list_(pa.float32()), nullable=False),
        pa.field("lpips", pa.float32()),
        pa.field("image", pa.binary()),
    ]
)


class RecordTable(Config):
    """Image records as one parquet file, with the seconds that rendering and measuring them took."""

    records: tuple[ImageRecord, ...]
    seconds: float = 0.0

    def to_parquet(self) -> bytes:
        """Return the parquet file's bytes."""
        rows = [record.model_dump(mode="json", exclude={"image"}) | {"image": record.image} for record in self.records]
        table = pa.Table.from_pylist(rows, schema=SCHEMA.with_metadata({"seconds": repr(self.seconds)}))
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression="zstd")
        return buffer.getvalue()

    @classmethod
    def from_parquet(cls, data: bytes) -> Self:
        """Read ``to_parquet``'s bytes; raise ArtifactFormatError for other bytes, SchemaError for other columns."""
        misfit, field, fix = "not a table of evaluated images", "evaluate", "delete it and run again"
        table = read_parquet(data, SCHEMA, misfit=misfit, field=field, fix=fix)
        try:
            seconds = float((table.schema.metadata or {})[b"seconds"])
            return cls(records=tuple(ImageRecord.model_validate(row) for row in table.to_pylist()), seconds=seconds)
        except (KeyError, ValueError) as error:
            raise ArtifactFormatError(f"{misfit}: {error}", field=field, fix=fix) from error


def select(
    records: Sequence[ImageRecord],
    *,
    model: str | None = None,
    part: EvaluationSplit | None = None,
    category: str | None = None,
) -> list[ImageRecord]:
    """Return the records that match every given field, sorted by prompt id so that models pair row by row."""
    found = [
        record
        for record in records
        if model in (None, record.model) and part in (None, record.part) and category in (None, record.category)
    ]
    return sorted(found, key=lambda record: record.prompt_id)
