"""The project's documents, and the code that stands in them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / ".github").rglob("*.md")),
    ROOT / "safety/emoji/zoo/README.md",
]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"(?:^    .*\n)+", re.MULTILINE)
INLINE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^)#\s]+)")
COMMAND = re.compile(
    r"^(make|python|safetydpo|pip|ray|serve|export|\.venv/\S+|pytest|kubectl|kind|helm|docker|curl|tensorboard)\b"
)


class Block(NamedTuple):
    """A fenced or indented block of a document."""

    document: str
    language: str
    text: str


def blocks(text: str, document: str) -> list[Block]:
    """Return the fenced blocks with their language, and the indented ones that hold commands as "sh"."""
    fenced = [Block(document, language, body) for language, body in FENCE.findall(text)]
    rest = FENCE.sub("", text)
    indented = [re.sub(r"^    ", "", body, flags=re.MULTILINE) for body in INDENTED.findall(rest)]
    return [*fenced, *(Block(document, "sh", body) for body in indented if COMMAND.match(body))]


def all_blocks() -> list[Block]:
    """Return the blocks of every document."""
    found = []
    for path in DOCUMENTS:
        found += blocks(path.read_text(encoding="utf-8"), path.relative_to(ROOT).as_posix())
    return found


def commands(block: Block) -> list[str]:
    """Return the commands of a shell block, each on one line and without its comment."""
    joined = block.text.replace("\\\n", " ")
    return [line for line in (re.sub(r"(^|\s)#\s.*$", "", line).strip() for line in joined.splitlines()) if line]


def without_blocks(text: str) -> str:
    """Return a document without its blocks."""
    return FENCE.sub("", text)
