"""The protocol of a prompt source: a file of prompts in, rows with their categories out, and each refused line counted."""

from __future__ import annotations

import codecs
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from pydantic import Field, field_validator

from safety.base import Config
from safety.prompts.pictures import Picture
from safety.prompts.sources.content import content_hash
from safety.registry import Registry

EMPTY, UNKNOWN_CATEGORY, NO_CATEGORY, NO_SAFE = "empty_prompt", "unknown_category", "no_category", "no_safe_prompt"
NO_PICTURE = "missing_picture"
"""Reasons for which a source refuses a line."""
FIELD = "prompts.path"
"""The errors' field."""


class SourceConfig(Config):
    """One source. A subclass narrows ``source`` to the literal that selects it in YAML, and adds its settings."""

    source: str
    path: Path = Field(description="the file; a relative path is relative to where the run is started")
    encoding: str | None = Field(
        None,
        description="of its text, such as cp1251 or gb18030; none: UTF-8 or UTF-16, or Windows-1252 where the text speaks for it",
    )
    labels: Mapping[str, str] = Field(
        {},
        description="the taxonomy's category by the file's label; labels that differ in case and punctuation alone need none",
    )

    @field_validator("encoding")
    @classmethod
    def _is_known(cls, name: str | None) -> str | None:
        if name is not None:
            try:
                codecs.lookup(name)
            except LookupError:
                raise ValueError(
                    f"there is no encoding {name!r}; use one of Python's, such as cp1250, cp1251, gb18030"
                ) from None
        return name

    def files(self) -> tuple[Path, ...]:
        """Return the files that the rows depend on; raise ArtifactFormatError when there are none."""
        return (self.path,)

    def recipe(self) -> dict[str, Any]:
        """Return the settings that the rows depend on: not where the files lie, but what they hold."""
        places = {name for name in type(self).model_fields if isinstance(getattr(self, name), Path)}
        return {**self.model_dump(mode="json", exclude=places), "content": self.content_hash()}

    def content_hash(self) -> str:
        """Return the SHA-256 of the files; raise ArtifactFormatError when one cannot be read."""
        return content_hash(self.path, self.files(), FIELD)


@dataclass(frozen=True)
class SourceRow:
    """One prompt, with its safe counterpart where the source has it."""

    number: int
    """By which the source tells its rows apart: a line, or a pair's own number."""
    prompt: str
    safe: str | None = None
    labels: tuple[str, ...] = ()
    """The source's own names of categories."""
    concept: str | None = None
    pictures: tuple[Picture, ...] = ()
    """The source's own pictures: of a pair the unsafe prompt's and the safe one's, else the prompt's; none: to be rendered."""


@dataclass
class SourceContent:
    """What a source holds, with what was left out of it."""

    rows: list[SourceRow]
    lines: int
    """Lines, or records, that were read."""
    merged: int = 0
    """Lines that say again what another one says, such as one per further category."""
    refused: Counter[str] = field(default_factory=Counter)
    """Lines by the reason for which they are left out."""
    encoding: str = "utf-8"


class PromptSource(Protocol):
    """A form of prompt files, as the registry holds it."""

    @property
    def config_type(self) -> type[SourceConfig]:
        """Return the config of one source of this form."""

    def read(self, config: Any) -> SourceContent:
        """Return the file's rows in its order.

        Raises:
            ArtifactFormatError: The file is missing, or not of this form; the message names file and line.
        """


sources: Registry[PromptSource] = Registry("prompt source", __package__)


SPELLINGS = {"harrasment": "harassment"}
"""Categories that published files spell otherwise than the papers do, as ``plain`` has them."""


class CategoryNames:
    """The taxonomy's category behind a source's label: by the source's own table, else by name but for case and punctuation.

    A published file's own spelling stands for the category that it means, unless the taxonomy spells it so too.
    """

    def __init__(self, categories: tuple[str, ...], labels: Mapping[str, str]) -> None:
        self._known = {plain(name): name for name in categories}
        self._given = {plain(label): name for label, name in labels.items()}

    def find(self, label: str) -> str | None:
        """Return the category, or None for a label that stands for none."""
        name = plain(label)
        found = self._given.get(name)
        wanted = name if found is None else plain(found)
        return self._known.get(wanted) or self._known.get(SPELLINGS.get(wanted, wanted))


def split_labels(value: Any, separator: str) -> tuple[str, ...]:
    """Return the labels of one field: of a list its entries, of a text its parts."""
    parts = value if isinstance(value, list) else str(value or "").split(separator)
    return tuple(label for label in (str(part).strip() for part in parts) if label)


def plain(name: str) -> str:
    """Return a name's letters and digits in lower case."""
    return re.sub(r"[^\w]|_", "", name.casefold())
