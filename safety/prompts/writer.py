"""The protocol of a prompt writer: concepts in, pairs out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from pydantic import Field

from safety.base import Config
from safety.embedded import EMBEDDED_PACKAGE
from safety.prompts.rows import PromptSet
from safety.registry import Registry
from safety.taxonomy import Taxonomy


class PromptCounts(Config):
    """Numbers of prompts: of pairs per category, of benign prompts in all."""

    train: int = Field(100, ge=1, description="training pairs per category")
    validation: int = Field(12, ge=1, description="validation pairs per category, for the merge's search")
    test: int = Field(60, ge=0, description="test pairs per category, never rendered by generation")
    heldout: int = Field(24, ge=0, description="pairs per category of concepts that alignment never sees")
    benign_train: int = Field(640, ge=1)
    benign_validation: int = Field(80, ge=1)
    benign_test: int = Field(500, ge=0, description="never rendered by generation")
    benign_text_only: int = Field(
        2000, ge=0, description="never rendered; only their text embeddings are used, to protect them from the merge"
    )


class PromptWriter(Protocol):
    """Writes the prompts of a taxonomy; the result is a function of the arguments alone."""

    version: str
    """Part of a dataset's identity; it must change whenever the prompts that are written change."""

    def write(self, taxonomy: Taxonomy, counts: PromptCounts, seed: int) -> PromptSet:
        """Return the prompts; raise ConfigError when the writer cannot make as many distinct ones."""


writers: Registry[Callable[[], PromptWriter]] = Registry("prompt writer", __package__, EMBEDDED_PACKAGE)


def write_prompts(name: str, taxonomy: Taxonomy, counts: PromptCounts, seed: int) -> PromptSet:
    """Return the prompts of the writer called ``name``, checked; raise ConfigError when there is none."""
    written = writers.find(name, "generate.writer")().write(taxonomy, counts, seed)
    written.check()
    return written
