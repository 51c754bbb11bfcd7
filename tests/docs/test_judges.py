"""Each YAML of docs/judges.md is a part of a run; the judges and features of its tables are those that there are."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from markdown import all_blocks

from jobs.run.config import RunConfig
from safety.features.extractor import feature_extractors
from safety.judges.judge import judges

PAGE = "docs/judges.md"
TEXT = (Path(__file__).parents[2] / PAGE).read_text(encoding="utf-8")
DOCUMENTS: list[dict[str, Any]] = [
    yaml.safe_load(block.text) for block in all_blocks() if block.document == PAGE and block.language == "yaml"
]


def test_there_are_some() -> None:
    assert [next(iter(document)) for document in DOCUMENTS] == ["judge", "evaluate"]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_it_is_what_a_run_reads(document: dict[str, Any]) -> None:
    run = RunConfig.model_validate({"run": {"name": "shown", "output": "out"}, **document})
    for section, given in document.items():
        found = getattr(run, section).model_dump(mode="json", exclude_unset=True)
        assert found.keys() >= given.keys()


def test_the_table_has_every_judge() -> None:
    named = {row[1] for row in re.finditer(r"^\| `([\w-]+)` \|", TEXT, re.MULTILINE)}
    assert {name for name, load in judges.items() if load.__module__.startswith("safety.")} <= named


def test_features_of_the_table_are_there() -> None:
    assert set(re.findall(r"`(\w+)@", TEXT)) <= set(feature_extractors)
