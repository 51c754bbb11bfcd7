"""A CSV with named columns: pairs, or prompts alone, such as those of I2P, Unsafe Diffusion and T2I-RiskyPrompt."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from safety.prompts.sources.source import (
    EMPTY,
    FIELD,
    NO_SAFE,
    SourceConfig,
    SourceContent,
    SourceRow,
    sources,
    split_labels,
)
from safety.prompts.sources.text import Line, read_csv


class CsvConfig(SourceConfig):
    """The columns' names."""

    source: Literal["csv"] = "csv"
    prompt: str = Field("prompt", description="column of the prompt; of a pair, the unsafe one")
    safe: str | None = Field(None, description="column of the safe counterpart; none: prompts alone")
    category: str | None = Field(None, description="column of the category, or of several")
    all_category: str | None = Field(None, description="the category of every row, where no column says it")
    separator: str = Field(",", min_length=1, description="between several categories of one field")
    concept: str | None = Field(None, description="column of the concept's name")


@sources.register("csv")
class CsvSource:
    """Reads a CSV by its header."""

    config_type = CsvConfig

    @staticmethod
    def read(config: CsvConfig) -> SourceContent:
        """Return the rows; a line without a prompt, or without the safe one of a pair, is refused."""
        named = (config.prompt, config.safe, config.category, config.concept)
        lines, encoding = read_csv(config.path, [name for name in named if name is not None], FIELD, config.encoding)
        content = SourceContent([], 0, encoding=encoding)
        for line in lines:
            content.lines += 1
            row = _row(line, config)
            if not row.prompt:
                content.refused[EMPTY] += 1
            elif config.safe is not None and not row.safe:
                content.refused[NO_SAFE] += 1
            else:
                content.rows.append(row)
        return content


def _row(line: Line, config: CsvConfig) -> SourceRow:
    fields = line.fields
    labels = () if config.category is None else split_labels(fields[config.category], config.separator)
    return SourceRow(
        number=line.number,
        prompt=fields[config.prompt],
        safe=None if config.safe is None else fields[config.safe],
        labels=labels if config.all_category is None else (config.all_category,),
        concept=None if config.concept is None else fields[config.concept] or None,
    )
