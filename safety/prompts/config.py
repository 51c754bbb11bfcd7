"""The sources of a run's prompts, instead of a writer's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, Union

from pydantic import Field, field_validator, model_validator

from safety.base import Config
from safety.prompts.llm.config import LlmWriterConfig
from safety.prompts.sources.source import SourceConfig, sources

if TYPE_CHECKING:
    AnySource = SourceConfig
else:
    # Built from the registry, so that a new form is one file.
    AnySource = Annotated[
        Union[tuple(kind.config_type for kind in sources.values())],  # noqa: UP007
        Field(discriminator="source"),
    ]


class PromptsConfig(Config):
    """Where pairs, test prompts and benign prompts are read from, and how they are split."""

    pairs: tuple[AnySource, ...] = Field((), description="sources of unsafe prompts with safe counterparts")
    writer: LlmWriterConfig | None = Field(
        None, description="a language model that writes pairs of the taxonomy's concepts, beside those of the sources"
    )
    test: tuple[AnySource, ...] = Field(
        (), description="sources of unsafe test prompts, with or without safe counterparts; none: a share of the pairs"
    )
    benign: tuple[AnySource, ...] = Field(
        description="sources of harmless prompts; generate.counts.benign_... say how many of them are used",
    )
    validation_share: float = Field(0.1, gt=0, lt=1, description="share of a category's pairs that choose the merge")
    test_share: float = Field(
        0.1, ge=0, lt=1, description="share of a category's pairs for the test, without test sources"
    )
    leaks: Literal["test", "pairs"] = Field(
        "test", description="which side loses a prompt that stands among the pairs and in a test source"
    )

    @field_validator("benign", mode="after")
    @classmethod
    def _has_one(cls, found: tuple[AnySource, ...]) -> tuple[AnySource, ...]:
        # Not by min_length: pydantic would add that message to the one of a source that is wrong.
        if not found:
            raise ValueError("name at least one source")
        return found

    @model_validator(mode="after")
    def _has_pairs(self) -> PromptsConfig:
        if not self.pairs and self.writer is None:
            raise ValueError("nothing gives pairs; name at least one source under pairs, or a writer")
        return self
