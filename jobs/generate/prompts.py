"""The run's prompts: from its sources, or by its writer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster.hashing import config_hash
from jobs.run.config import RunConfig
from safety.prompts.card import SourceCard, cards_markdown
from safety.prompts.collection import CollectedPrompts, PromptCollection, WrittenPairs
from safety.prompts.writer import PromptCounts, write_prompts, writers
from safety.taxonomy import Taxonomy

SOURCES = "sources"
SOURCES_FILE, SOURCES_CARD = "sources.json", "SOURCES.md"
ROLES = ("pairs", "test", "benign")


def prompts_version(run: RunConfig, writer: Mapping[str, Any] | None = None) -> str:
    """Return the version of what gives the prompts, which changes whenever they may: part of a dataset's id.

    Args:
        run: The run.
        writer: The recipe of its language model (``writer_recipe``), where it has one.

    Raises:
        ConfigError: There is no such writer.
        ArtifactFormatError: A source's file cannot be read.
    """
    if run.prompts is None:
        return writers.find(run.generate.writer, "generate.writer")().version
    files = [[source.recipe() for source in getattr(run.prompts, role)] for role in ROLES]
    others = run.prompts.model_dump(mode="json", exclude={*ROLES, "writer"})
    # Without a language model as if there were no such setting.
    written = [] if writer is None else [dict(writer)]
    return f"{SOURCES}-{config_hash([others, files, *written])[:12]}"


def run_prompts(
    run: RunConfig, taxonomy: Taxonomy, counts: PromptCounts | None = None, written: WrittenPairs | None = None
) -> CollectedPrompts:
    """Return the run's prompts, a card per source and the sources' pictures; a writer has neither.

    Args:
        run: The run.
        taxonomy: Its taxonomy.
        counts: Other counts than the run's, for a quick look by a writer; sources are read whole whatever they are.
        written: What the run's language model wrote.

    Raises:
        ConfigError: There is no such writer, it cannot write as many prompts, or the sources do not give them.
        ArtifactFormatError: A source is missing, or not of its form.
    """
    config, seed = run.generate, run.run.seed
    if run.prompts is not None:
        return PromptCollection(run.prompts, taxonomy, config.counts, seed).collect(written)
    return CollectedPrompts(write_prompts(config.writer, taxonomy, counts or config.counts, seed))


def write_cards(folder: Path, cards: Sequence[SourceCard]) -> None:
    """Write the sources' cards as JSON and as Markdown; nothing for a writer."""
    if cards:
        documents = [card.document() for card in cards]
        (folder / SOURCES_FILE).write_text(json.dumps(documents, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        (folder / SOURCES_CARD).write_text(f"# Prompt sources\n\n{cards_markdown(cards)}", encoding="utf-8")
