"""The record of one prompt row, filled in by rendering and judging, and groups of records as parquet bytes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from safety.base import Config
from safety.dataset.filter import RejectionReason
from safety.errors import ArtifactFormatError
from safety.parquet import read_parquet
from safety.prompts.pictures import Picture
from safety.prompts.rows import BenignPrompt, PromptPair, PromptRow

SCHEMA = pa.schema(
    [
        ("row_id", pa.string()),
        ("kind", pa.string()),
        ("row", pa.string()),
        ("seed", pa.int64()),
        ("pictures", pa.string()),
        ("reason", pa.string()),
        ("scores", pa.string()),
        ("images", pa.list_(pa.binary())),
        ("pixel_hashes", pa.list_(pa.string())),
        ("tensors", pa.binary()),
    ]
)


class Record(Config):
    """A prompt row with its images, scores, rejection reason, latents and text states."""

    row: PromptRow
    seed: int
    pictures: tuple[Picture, ...] = ()
    """Where the source's own images lie, in the order of ``images``; none: they are rendered."""
    reason: RejectionReason | None = None
    scores: tuple[dict[str, float], ...] = ()
    """The judge's scores by category, one entry per image."""
    images: tuple[bytes, ...] = ()
    """PNG: a pair's unsafe and safe image, or the image of a benign prompt."""
    pixel_hashes: tuple[str, ...] = ()
    tensors: bytes | None = None
    """safetensors of the kept row's latents and text states (``safety.dataset.renderer``)."""

    @property
    def kept(self) -> bool:
        """Return whether the row is kept."""
        return self.reason is None

    @property
    def group(self) -> str:
        """Return the category that it counts under; benign rows count under their own."""
        return row_group(self.row)

    def content_hash(self) -> str:
        """Return the SHA-256 of the content: texts, seed, reason, scores, pixels and tensors."""
        document = self.model_dump(mode="json", exclude={"images", "tensors", "pictures"})
        if self.pictures:
            # Not where they lie: what they show is in the pixels' hashes.
            document["published"] = True
        document["tensors"] = hashlib.sha256(self.tensors or b"").hexdigest()
        canonical = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(canonical.encode()).hexdigest()


def row_group(row: PromptRow) -> str:
    """Return the category that a row counts under; benign rows count under their own."""
    return row.category if isinstance(row, PromptPair) else "benign"


def dump_group(records: Sequence[Record]) -> bytes:
    """Return records as the bytes of a parquet file; equal records give equal bytes."""
    rows = [
        {
            "row_id": r.row.row_id,
            "kind": "pair" if isinstance(r.row, PromptPair) else "benign",
            "row": r.row.model_dump_json(),
            "seed": r.seed,
            "pictures": json.dumps([picture.model_dump() for picture in r.pictures]),
            "reason": None if r.reason is None else str(r.reason),
            "scores": json.dumps(r.scores),
            "images": list(r.images),
            "pixel_hashes": list(r.pixel_hashes),
            "tensors": r.tensors,
        }
        for r in records
    ]
    sink = pa.BufferOutputStream()
    # Images and half the tensors do not compress; zstd keeps the text states small.
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), sink, compression="zstd", use_dictionary=False)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def load_group(data: bytes) -> list[Record]:
    """Return the records of ``dump_group``; raise ArtifactFormatError for other bytes, SchemaError for other columns."""
    misfit, field, fix = "the group of rows cannot be read", "dataset", "delete it and generate again"
    table = read_parquet(data, SCHEMA, misfit=misfit, field=field, fix=fix)
    try:
        return [_record(row) for row in table.to_pylist()]
    except (TypeError, ValueError, RecursionError) as error:
        raise ArtifactFormatError(f"{misfit}: {error}", field=field, fix=fix) from error


def _record(row: dict[str, Any]) -> Record:
    kind = PromptPair if row["kind"] == "pair" else BenignPrompt
    return Record(
        row=kind.model_validate_json(row["row"]),
        seed=row["seed"],
        pictures=tuple(Picture.model_validate(picture) for picture in json.loads(row["pictures"])),
        reason=None if row["reason"] is None else RejectionReason(row["reason"]),
        scores=tuple(json.loads(row["scores"])),
        images=tuple(row["images"]),
        pixel_hashes=tuple(row["pixel_hashes"]),
        tensors=row["tensors"],
    )
