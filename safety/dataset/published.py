"""The published form of a dataset: parquet shards in the pickapic columns that preference trainers read.

A shard has the kept pairs of one split of a group, and is written by the worker that judged them. Each kept pair gives
two rows, one captioned by the unsafe and one by the safe prompt; the safe image wins both (``jpg_0``, ``label_0`` 1).
The two rows share their images through parquet's dictionary, so an image is stored once.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from safety.dataset.record import Record
from safety.parquet import read_parquet
from safety.prompts.rows import PromptPair

ROW_GROUP_PAIRS = 64
DICTIONARY_BYTES = 1 << 30
PAIR_FIELDS: list[tuple[str, Any]] = [
    ("pair_id", pa.string()),
    ("category", pa.string()),
    ("other_categories", pa.list_(pa.string())),
    ("concept", pa.string()),
    ("split", pa.string()),
    ("unsafe_prompt", pa.string()),
    ("safe_prompt", pa.string()),
    ("benign_objects", pa.list_(pa.string())),
    ("counterpart", pa.string()),
    ("background", pa.string()),
    ("writer", pa.string()),
    ("seed", pa.int64()),
    ("model", pa.string()),
    ("unsafe_scores", pa.string()),
    ("safe_scores", pa.string()),
]
PUBLISHED = pa.schema(
    [
        *PAIR_FIELDS,
        ("conditioned_on", pa.string()),
        ("caption", pa.string()),
        ("jpg_0", pa.binary()),
        ("jpg_1", pa.binary()),
        ("label_0", pa.int64()),
    ]
)
REJECTED = pa.schema(
    [
        ("row_id", pa.string()),
        ("category", pa.string()),
        ("split", pa.string()),
        ("reason", pa.string()),
        ("prompts", pa.list_(pa.string())),
        ("seed", pa.int64()),
        ("scores", pa.string()),
        ("images", pa.list_(pa.binary())),
    ]
)


def data_file(split: str, group: int) -> str:
    """Return the name of the shard that holds a group's kept pairs of one split."""
    return f"data/{split}-{group:06d}.parquet"


def rejected_file(group: int | None) -> str:
    """Return the name of the table of a group's rejected rows; None: of the rows that were never rendered."""
    return f"rejected/{'refused' if group is None else f'{group:06d}'}.parquet"


def dump_pairs(records: Sequence[Record], model: str) -> bytes:
    """Return kept pairs as a shard; equal records give equal bytes.

    Args:
        records: Kept pairs, at least one.
        model: The value of the column ``model``.
    """
    rows = [row for record in records for row in published_rows(record, model)]
    return _parquet(
        rows,
        PUBLISHED,
        row_group_size=2 * ROW_GROUP_PAIRS,
        # With a practically unlimited dictionary, equal images of a row group are stored once.
        dictionary_pagesize_limit=DICTIONARY_BYTES,
    )


def dump_rejected(records: Sequence[Record]) -> bytes:
    """Return rejected rows as a table, with their images if any."""
    rows = [
        {
            "row_id": record.row.row_id,
            "category": record.group,
            "split": record.row.split,
            "reason": str(record.reason),
            "prompts": list(record.row.prompts),
            "seed": record.seed,
            "scores": json.dumps(record.scores),
            "images": list(record.images),
        }
        for record in records
    ]
    return _parquet(rows, REJECTED)


def read_images(data: bytes) -> list[tuple[bytes, bytes]]:
    """Return the unsafe and the safe image of each pair of a shard; raise ArtifactFormatError for other bytes."""
    table = read_parquet(data, PUBLISHED, misfit="the shard holds no pairs", field="dataset", fix="generate it again")
    rows = table.select(["conditioned_on", "jpg_1", "jpg_0"]).to_pylist()
    return [(row["jpg_1"], row["jpg_0"]) for row in rows if row["conditioned_on"] == "unsafe"]


def _parquet(rows: list[dict[str, Any]], schema: pa.Schema, **settings: Any) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), sink, compression="zstd", **settings)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def published_rows(record: Record, model: str) -> list[dict[str, Any]]:
    """Return a kept pair's two rows; raise TypeError for another record."""
    pair = record.row
    if not isinstance(pair, PromptPair) or pair.safe_prompt is None:
        raise TypeError(f"{pair.row_id} is not a pair")
    unsafe_image, safe_image = record.images
    unsafe_scores, safe_scores = (json.dumps(scores) for scores in record.scores)
    columns = {name: value for name, value in pair.model_dump().items() if name in dict(PAIR_FIELDS)}
    common = {
        **columns,
        "seed": record.seed,
        # The pictures of a source are not the base model's.
        "model": None if record.pictures else model,
        "unsafe_scores": unsafe_scores,
        "safe_scores": safe_scores,
    }
    return [
        {**common, "conditioned_on": on, "caption": caption, "jpg_0": safe_image, "jpg_1": unsafe_image, "label_0": 1}
        for on, caption in (("unsafe", pair.unsafe_prompt), ("safe", pair.safe_prompt))
    ]
