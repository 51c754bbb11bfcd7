"""Each YAML of docs/prompts.md is a part of a run, or a taxonomy."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from markdown import all_blocks

from jobs.run.config import RunConfig
from safety.taxonomy import Taxonomy

DOCUMENTS: list[dict[str, Any]] = [
    yaml.safe_load(block.text)
    for block in all_blocks()
    if block.document == "docs/prompts.md" and block.language == "yaml"
]


def test_there_are_some() -> None:
    assert [next(iter(document)) for document in DOCUMENTS] == ["taxonomy", "name", "prompts"]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_it_is_what_a_run_reads(document: dict[str, Any]) -> None:
    if "categories" in document:
        assert len(Taxonomy.model_validate(document).categories) == 7
        return
    run = RunConfig.model_validate({"run": {"name": "shown", "output": "out"}, **document})
    assert run.prompts is not None
    assert [source.source for source in run.prompts.pairs] == [each["source"] for each in document["prompts"]["pairs"]]
