"""Each YAML of docs/writers.md is a part of a run, or a taxonomy; its table of reasons is whole."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from markdown import all_blocks

from jobs.run.config import RunConfig
from safety.prompts.llm.draft import DraftReason
from safety.taxonomy import Taxonomy

PAGE = "docs/writers.md"
DOCUMENTS: list[dict[str, Any]] = [
    yaml.safe_load(block.text) for block in all_blocks() if block.document == PAGE and block.language == "yaml"
]


def test_there_are_some() -> None:
    assert [next(iter(document)) for document in DOCUMENTS] == ["taxonomy", "name", "prompts", "prompts"]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_it_is_what_a_run_reads(document: dict[str, Any]) -> None:
    if "concepts" in document:
        assert Taxonomy.model_validate(document).categories == ("sharp things",)
        return
    run = RunConfig.model_validate({"run": {"name": "shown", "output": "out"}, **document})
    assert run.prompts is not None
    assert run.prompts.writer is not None
    given = document["prompts"]["writer"]
    assert run.prompts.writer.model_dump(mode="json", exclude_unset=True)["engine"] == given["engine"]


def test_every_reason_is_explained() -> None:
    text = (Path(__file__).parents[2] / PAGE).read_text(encoding="utf-8")
    explained = {name for line in text.splitlines() if line.startswith("| `") for name in re.findall(r"`(\w+)`", line)}
    both = {f"safe_{name}" for name in explained}
    assert {str(reason) for reason in DraftReason} <= explained | both
