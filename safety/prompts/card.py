"""The card of one prompt source: what was read, merged, refused and used, so that lines = used + merged + refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from safety.errors import ArtifactFormatError
from safety.markdown import plain

SHOWN_LABELS = 10


@dataclass
class SourceCard:
    """One source's counts."""

    role: str
    """"pairs", "test" or "benign"."""
    source: str
    """The form's name."""
    file: str
    sha256: str
    encoding: str
    lines: int
    """Lines, or records, in the file."""
    merged: int = 0
    """Lines that repeat another one, or name a further category of it."""
    recurring: int = 0
    """Unsafe prompts that stand in several pairs with different counterparts; they are in one split."""
    pictures: int = 0
    """Used rows with pictures of their source, which are not rendered."""
    refused: Counter[str] = field(default_factory=Counter)
    """Lines by the reason for which they are left out."""
    unknown_labels: Counter[str] = field(default_factory=Counter)
    """Labels that stand for no category of the taxonomy."""
    used: dict[str, Counter[str]] = field(default_factory=dict)
    """Rows by category and split."""

    def count(self, category: str, split: str) -> None:
        """Count a row that is used."""
        self.used.setdefault(category, Counter())[split] += 1

    @property
    def rows(self) -> int:
        """Return the number of rows that are used."""
        return sum(sum(counts.values()) for counts in self.used.values())

    def checked(self) -> SourceCard:
        """Return the card; raise ArtifactFormatError when a line is neither used nor merged nor refused."""
        if self.lines != self.rows + self.merged + sum(self.refused.values()):
            raise ArtifactFormatError(
                f"{self.file}: {self.lines} lines are not {self.rows} used, {self.merged} merged and "
                f"{sum(self.refused.values())} refused",
                field="prompts",
                fix="report it: a row was lost",
            )
        return self

    def describe_refused(self) -> str:
        """Return the reasons with their counts, and the labels that stand for no category."""
        text = ", ".join(f"{reason} {count}" for reason, count in self.refused.most_common()) or "no line"
        labels = [repr(label) for label, _ in self.unknown_labels.most_common(SHOWN_LABELS)]
        return f"{text} (unknown labels: {', '.join(labels)})" if labels else text

    def document(self) -> dict[str, Any]:
        """Return the card as JSON has it."""
        return {
            **{name: getattr(self, name) for name in ("role", "source", "file", "sha256", "encoding", "lines")},
            "used": {category: dict(counts) for category, counts in self.used.items()},
            "merged": self.merged,
            "recurring": self.recurring,
            "pictures": self.pictures,
            "refused": dict(self.refused),
            "unknown_labels": dict(self.unknown_labels),
        }


def cards_markdown(cards: Sequence[SourceCard]) -> str:
    """Return the cards as a table in Markdown."""
    lines = [
        "| for | form | file | lines | used | merged | recurring | with pictures | refused |",
        "|---|---|---|---|---|---|---|---|---|",
        *(
            f"| {card.role} | {card.source} | {plain(card.file)} | {card.lines} | {card.rows} | {card.merged} | "
            f"{card.recurring} | {card.pictures} | {plain(card.describe_refused()) if card.refused else '0'} |"
            for card in cards
        ),
    ]
    return "\n".join(lines) + "\n"
