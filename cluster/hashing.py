"""Canonical JSON and the hashes that name artifacts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel

ID_DIGITS = 16


def canonical_json(document: Any) -> bytes:
    """Return a document's canonical JSON: sorted keys, no spaces, UTF-8; raise ValueError for NaN and infinities."""
    if isinstance(document, BaseModel):
        document = document.model_dump(mode="json")
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8")


def config_hash(document: Any) -> str:
    """Return the SHA-256 of a document's canonical JSON, in hexadecimal."""
    return hashlib.sha256(canonical_json(document)).hexdigest()


def artifact_id(stage: str, config: Any, parents: Sequence[str], seed: int) -> str:
    """Return the id of a stage's artifact, ``<stage>-<16 digits>``, from its config, parents' ids and the run's seed."""
    if isinstance(config, BaseModel):
        config = config.model_dump(mode="json")
    document = {"stage": stage, "config": config, "parents": list(parents), "seed": seed}
    return f"{stage}-{config_hash(document)[:ID_DIGITS]}"
