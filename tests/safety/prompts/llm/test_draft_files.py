"""A writer's files: all draws come back, the card's counts add up, and the pairs become a source's rows."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from safety.errors import ArtifactFormatError
from safety.prompts.llm.draft import Draft, DraftReason
from safety.prompts.llm.draft_files import (
    CARD_FILE,
    DRAFTS_FILE,
    PLOT_FILE,
    read_drafts,
    write_draft_files,
    written_pairs,
)
from safety.taxonomy import Taxonomy

TAXONOMY = Taxonomy.model_validate(
    {
        "name": "toys",
        "version": "1",
        "concepts": [{"name": "kite", "category": "toys | games"}, {"name": "saw", "category": "tools"}],
    }
)
DRAFTS = [
    Draft(concept="kite", draw=0, state="kept", prompt="a kite", safe="a bag"),
    Draft(concept="kite", draw=1, state="rejected", reason=DraftReason.REFUSED),
    Draft(concept="kite", draw=2, state="rejected", reason=DraftReason.SAFE_UNCHANGED, prompt="kites", safe="kites"),
    Draft(concept="saw", draw=0, state="kept", prompt="a saw", safe="a cup"),
]


def test_all_draws_come_back_and_the_pairs_are_rows(tmp_path: Path) -> None:
    write_draft_files(DRAFTS, TAXONOMY, "chat-1", tmp_path)
    assert read_drafts(tmp_path / DRAFTS_FILE) == DRAFTS
    written = written_pairs("chat-1", tmp_path / DRAFTS_FILE, TAXONOMY)
    assert [(r.number, r.prompt, r.safe, r.labels, r.concept) for r in written.content.rows] == [
        (0, "a kite", "a bag", ("toys | games",), "kite"),
        (0, "a saw", "a cup", ("tools",), "saw"),
    ]
    assert written.content.lines == len(written.content.rows) + written.content.refused.total()
    assert written.content.refused == {"refused": 1, "safe_unchanged": 1}


def test_the_card_counts_by_category_and_reason(tmp_path: Path) -> None:
    write_draft_files(DRAFTS, TAXONOMY, "chat-1", tmp_path)
    card = (tmp_path / CARD_FILE).read_text(encoding="utf-8")
    assert "4 draws = 2 pairs + 2 rejected" in card
    assert r"| toys \| games | 3 | 1 | refused 1, safe\_unchanged 1 |" in card
    assert "| tools | 1 | 1 | 0 |" in card
    with Image.open(tmp_path / PLOT_FILE) as plot:
        assert plot.width > 500


def test_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / DRAFTS_FILE).write_bytes(b"PAR1 no parquet PAR1")
    with pytest.raises(ArtifactFormatError, match="holds no drafts"):
        read_drafts(tmp_path / DRAFTS_FILE)
