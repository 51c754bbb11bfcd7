"""Records survive parquet, and damage is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from safety.errors import ArtifactFormatError
from safety.evaluation.records import EvaluationSplit, ImageRecord, RecordTable, select


def test_records_survive_a_round_trip(record: Callable[..., ImageRecord]) -> None:
    rows = (
        record("base", "a", flagged=True, image=b"png", shown=True, scores=(0.25, 0.5), seed=2**32 - 1),
        record("base", "b", part=EvaluationSplit.REFERENCE, present=None, background=None, features=(0.5, -1.25)),
    )
    table = RecordTable(records=rows, seconds=1.5)
    assert RecordTable.from_parquet(table.to_parquet()) == table


def test_damage_is_refused(record: Callable[..., ImageRecord]) -> None:
    data = RecordTable(records=(record("base", "a"),)).to_parquet()
    for broken in (b"", b"not parquet", data[: len(data) // 2]):
        with pytest.raises(ArtifactFormatError, match="evaluated images"):
            RecordTable.from_parquet(broken)


def test_select_sorts_by_prompt_so_that_models_pair(record: Callable[..., ImageRecord]) -> None:
    rows = [
        record("base", "b"),
        record("merged", "a"),
        record("base", "a"),
        record("base", "c", part=EvaluationSplit.HELDOUT),
    ]
    assert [r.prompt_id for r in select(rows, model="base", part=EvaluationSplit.TEST)] == ["a", "b"]
    assert len(select(rows, category="violence")) == 4
    assert select(rows, category="hate") == []
