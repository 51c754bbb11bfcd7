"""Published pictures for tests of sources: random ones, in the forms in which sets of them are published."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from safety.images import encode_png


def picture(seed: int, height: int = 32, width: int = 32) -> bytes:
    """Return a PNG of noise."""
    generator = torch.Generator().manual_seed(seed)
    return encode_png(torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator))


def preference_rows(
    pairs: Sequence[tuple[str, str, str]], height: int = 32, width: int = 32, winner_first: bool = True
) -> list[dict[str, Any]]:
    """Return two rows for each (unsafe prompt, safe prompt, category); the safe picture wins in both."""
    rows = []
    for number, (unsafe, safe, category) in enumerate(pairs):
        bad, good = (picture(2 * number + side, height, width) for side in (0, 1))
        first = winner_first or number % 2 == 0
        for side, caption in (("unsafe", unsafe), ("safe", safe)):
            rows.append(
                {
                    "caption": caption,
                    "jpg_0": good if first else bad,
                    "jpg_1": bad if first else good,
                    "label_0": 1 if first else 0,
                    "unsafe_prompt": unsafe,
                    "safe_prompt": safe,
                    "conditioned_on": side,
                    "category": category,
                    "remarks": "not read",
                }
            )
    return rows


def write_shards(folder: Path, rows: Sequence[dict[str, Any]], shards: int = 2, *, structs: bool = False) -> Path:
    """Write rows as parquet shards of small row groups; ``structs``: pictures as the datasets library writes them."""
    folder.mkdir(parents=True, exist_ok=True)
    size = -(-len(rows) // shards)
    for number in range(shards):
        part = [dict(row) for row in rows[number * size : (number + 1) * size]]
        for row in part if structs else ():
            for name in ("jpg_0", "jpg_1"):
                row[name] = {"bytes": row[name], "path": f"{name}.png"}
        pq.write_table(pa.Table.from_pylist(part), folder / f"train-{number:05d}.parquet", row_group_size=4)
    return folder
