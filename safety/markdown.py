"""Text from users in Markdown: cells of tables, quoted paragraphs and the YAML head that model hubs read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

MARKS = re.compile(r"([\\`*_\[\]<>|$~])")
"""What begins emphasis, code, a link, HTML, mathematics or a new cell."""


def plain(text: str) -> str:
    """Return text that Markdown shows as it stands, on one line, in a table's cell or elsewhere."""
    return MARKS.sub(r"\\\1", " ".join(text.split()))


def code(text: str) -> str:
    """Return text as inline code, on one line; a bar is escaped, which tables need even there."""
    line = " ".join(text.split()).replace("|", "\\|")
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", line)), default=0))
    return f"{fence} {line} {fence}" if "`" in line else f"`{line}`"


def quoted(paragraph: str) -> str:
    """Return a paragraph of Markdown as a quotation, whatever lines it has."""
    return "\n".join(f"> {line}".rstrip() for line in paragraph.strip().splitlines())


def head(entries: Mapping[str, Any]) -> str:
    """Return lines of YAML for a card's head, without its marks; long values are not folded."""
    return yaml.safe_dump(dict(entries), sort_keys=False, allow_unicode=True, width=10**6).rstrip()
