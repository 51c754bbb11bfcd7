"""Lines of text, one prompt each, such as captions of photographs for benign prompts."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from safety.prompts.sources.source import EMPTY, FIELD, SourceConfig, SourceContent, SourceRow, sources
from safety.prompts.sources.text import read_lines


class LinesConfig(SourceConfig):
    """A text file, one prompt per line."""

    source: Literal["lines"] = "lines"
    all_category: str | None = Field(None, description="the category of every line; none: for benign prompts")


@sources.register("lines")
class LinesSource:
    """Reads a file line by line."""

    config_type = LinesConfig

    @staticmethod
    def read(config: LinesConfig) -> SourceContent:
        """Return the lines that hold text."""
        lines, encoding = read_lines(config.path, FIELD, config.encoding)
        content = SourceContent([], 0, encoding=encoding)
        labels = () if config.all_category is None else (config.all_category,)
        for number, line in enumerate(lines, 1):
            content.lines += 1
            if line.strip():
                content.rows.append(SourceRow(number, line.strip(), labels=labels))
            else:
                content.refused[EMPTY] += 1
        return content
