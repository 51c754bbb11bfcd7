"""Prompt sets as one parquet table: one row per pair or benign prompt, distinguished by ``kind``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from safety.errors import ArtifactFormatError
from safety.parquet import read_parquet
from safety.prompts.rows import BenignPrompt, PromptPair, PromptSet

PROMPTS_FILE = "prompts.parquet"
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("kind", pa.string()),
        ("split", pa.string()),
        ("category", pa.string()),
        ("other_categories", pa.list_(pa.string())),
        ("concept", pa.string()),
        ("unsafe_prompt", pa.string()),
        ("safe_prompt", pa.string()),
        ("prompt", pa.string()),
        ("objects", pa.list_(pa.string())),
        ("counterpart", pa.string()),
        ("background", pa.string()),
        ("writer", pa.string()),
    ]
)
PAIR_NAMES = {"pair_id": "id", "benign_objects": "objects"}
BENIGN_NAMES = {"prompt_id": "id"}


def write_prompt_file(prompts: PromptSet, path: Path) -> None:
    """Write a prompt set; benign splits are spelled ``benign_train`` and so on."""
    pairs = [{"kind": "pair", **_renamed(p.model_dump(), PAIR_NAMES)} for p in prompts.pairs]
    benign = [
        {"kind": "benign", **_renamed(b.model_dump(), BENIGN_NAMES), "split": f"benign_{b.split}"}
        for b in prompts.benign
    ]
    table = pa.Table.from_pylist([_filled(row) for row in (*pairs, *benign)], schema=SCHEMA)
    pq.write_table(table, path)


def read_prompt_file(path: Path) -> PromptSet:
    """Read a prompt set; raise ArtifactFormatError when the file holds none, SchemaError for other columns."""
    misfit, field, fix = f"{path.name} holds no prompts", "prompts", "generate the dataset again"
    table = read_parquet(path, SCHEMA, misfit=misfit, field=field, fix=fix)
    try:
        rows = table.to_pylist()
        pairs = [_parsed(row, PAIR_NAMES, PromptPair.model_fields) for row in rows if row["kind"] == "pair"]
        benign = [_parsed(row, BENIGN_NAMES, BenignPrompt.model_fields) for row in rows if row["kind"] == "benign"]
        for row in benign:
            row["split"] = str(row["split"]).removeprefix("benign_")
        return PromptSet.model_validate({"pairs": pairs, "benign": benign})
    except ValueError as error:
        raise ArtifactFormatError(f"{misfit}: {error}", field=field, fix=fix) from error


def _renamed(row: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    return {names.get(key, key): value for key, value in row.items()}


def _filled(row: dict[str, Any]) -> dict[str, Any]:
    return {name: row.get(name) for name in SCHEMA.names}


def _parsed(row: dict[str, Any], names: dict[str, str], fields: Any) -> dict[str, Any]:
    return {field: row[names.get(field, field)] for field in fields}
