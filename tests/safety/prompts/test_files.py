"""Prompt files give back what was written, and refuse others."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from safety.errors import ArtifactFormatError
from safety.prompts.files import read_prompt_file, write_prompt_file
from safety.prompts.rows import BenignPrompt, PromptPair, PromptSet

PROMPTS = PromptSet(
    pairs=(
        PromptPair(
            pair_id="p1",
            category="hate",
            other_categories=("violence",),
            concept=None,
            split="heldout",
            unsafe_prompt="x",
            safe_prompt="y",
            writer="w",
        ),
        PromptPair(
            pair_id="p2",
            category="sexual",
            concept="bikini",
            split="train",
            unsafe_prompt="a bikini and a house",
            safe_prompt="a t-shirt and a house",
            benign_objects=("house",),
            counterpart="t-shirt",
            background="blue",
            writer="grammar",
        ),
    ),
    benign=(BenignPrompt(prompt_id="b", prompt="a house", objects=("house",), split="test", writer="w"),),
)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "prompts.parquet"
    write_prompt_file(PROMPTS, path)
    assert read_prompt_file(path) == PROMPTS
    assert pq.read_table(path).column("split").to_pylist() == ["heldout", "train", "benign_test"]


@pytest.mark.parametrize("kind", ["text", "columns", "missing"])
def test_other_files_are_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "prompts.parquet"
    if kind == "text":
        path.write_text("id,kind")
    elif kind == "columns":
        pq.write_table(pa.table({"id": ["a"], "kind": ["pair"]}), path)
    with pytest.raises(ArtifactFormatError, match=r"prompts: prompts.parquet holds no prompts"):
        read_prompt_file(path)
