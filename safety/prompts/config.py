"""The sources of a run's prompts, instead of a writer's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, Union

from pydantic import Field, field_validator

from safety.base import Config
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

    pairs: tuple[AnySource, ...] = Field(description="sources of unsafe prompts with safe counterparts")
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

    @field_validator("pairs", "benign", mode="after")
    @classmethod
    def _has_one(cls, found: tuple[AnySource, ...]) -> tuple[AnySource, ...]:
        # Not by min_length: pydantic would add that message to the one of a source that is wrong.
        if not found:
            raise ValueError("name at least one source")
        return found
