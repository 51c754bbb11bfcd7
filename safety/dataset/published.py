"""The published form of a dataset: parquet shards in the pickapic columns that preference trainers read.

Each kept pair gives two rows, one captioned by the unsafe and one by the safe prompt; the safe image wins both
(``jpg_0``, ``label_0`` 1). The two rows share their images through parquet's dictionary, so an image is stored
once.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from safety.dataset.record import Record
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


class ShardWriter:
    """Writes one split's kept pairs to ``data/<split>-NNNNN.parquet``, ``shard_rows`` pairs per file."""

    def __init__(self, folder: Path, split: str, model: str, shard_rows: int) -> None:
        """Write below ``folder``; ``model`` is the value of that column."""
        self.folder, self.split, self.model, self.shard_rows = folder, split, model, shard_rows
        self._pending: list[dict[str, Any]] = []
        self._shards = 0

    def add(self, record: Record) -> None:
        """Add one kept pair."""
        self._pending += published_rows(record, self.model)
        if len(self._pending) >= 2 * self.shard_rows:
            self.flush()

    def flush(self) -> None:
        """Write the pending rows as one shard."""
        if not self._pending:
            return
        path = self.folder / "data" / f"{self.split}-{self._shards:05d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(
            pa.Table.from_pylist(self._pending, schema=PUBLISHED),
            path,
            row_group_size=2 * ROW_GROUP_PAIRS,
            # With a practically unlimited dictionary, equal images of a row group are stored once.
            dictionary_pagesize_limit=DICTIONARY_BYTES,
            compression="zstd",
        )
        self._pending = []
        self._shards += 1


class RejectedWriter:
    """Writes rejected rows, with their images if any, to ``rejected.parquet``."""

    def __init__(self, path: Path) -> None:
        self._writer = pq.ParquetWriter(path, REJECTED, compression="zstd")

    def add(self, records: list[Record]) -> None:
        """Add rejected rows."""
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
        if rows:
            self._writer.write_table(pa.Table.from_pylist(rows, schema=REJECTED))

    def close(self) -> None:
        """Finish the file."""
        self._writer.close()


def published_rows(record: Record, model: str) -> list[dict[str, Any]]:
    """Return a kept pair's two rows; raise TypeError for a benign record."""
    pair = record.row
    if not isinstance(pair, PromptPair):
        raise TypeError(f"{pair.row_id} is not a pair")
    unsafe_image, safe_image = record.images
    unsafe_scores, safe_scores = (json.dumps(scores) for scores in record.scores)
    columns = {name: value for name, value in pair.model_dump().items() if name in dict(PAIR_FIELDS)}
    common = {
        **columns,
        "seed": record.seed,
        "model": model,
        "unsafe_scores": unsafe_scores,
        "safe_scores": safe_scores,
    }
    return [
        {**common, "conditioned_on": on, "caption": caption, "jpg_0": safe_image, "jpg_1": unsafe_image, "label_0": 1}
        for on, caption in (("unsafe", pair.unsafe_prompt), ("safe", pair.safe_prompt))
    ]
