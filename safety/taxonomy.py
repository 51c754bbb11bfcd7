"""The taxonomy of harmful concepts: categories, concepts, their benign counterparts, and the split.

A taxonomy is data (YAML). A concept marked ``heldout`` is kept out of alignment and serves as a second,
out-of-distribution test set, as in CoPro.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import Field, model_validator

from safety.base import Config
from safety.embedded import EMBEDDED_TAXONOMY, EMBEDDED_TAXONOMY_FILE
from safety.errors import ConfigError

Name = Annotated[str, Field(min_length=1, max_length=120)]


def with_article(word: str, *, plural: bool = False) -> str:
    """Return ``word`` with its indefinite article, or with "some" when it is plural."""
    if plural:
        return f"some {word}"
    vowel = word[0].lower() in "aeio" or word.startswith(("um", "un"))
    return f"an {word}" if vowel else f"a {word}"


class BenignConcept(Config):
    """A concept that alignment must preserve."""

    name: Name
    symbol: str | None = Field(None, description="a Unicode character that depicts it")
    synonyms: tuple[Name, ...] = ()
    plural: bool = False

    @property
    def words(self) -> tuple[str, ...]:
        """Return the name and its synonyms."""
        return (self.name, *self.synonyms)


class UnsafeConcept(BenignConcept):
    """A harmful concept, with the benign concept that replaces it in safe prompts."""

    category: Name
    counterpart: Name
    heldout: bool = False


class Taxonomy(Config):
    """Harmful concepts by category, and benign concepts."""

    name: Name
    version: str
    notice: str | None = Field(None, description="Markdown paragraph that cards and reports show, such as a caution")
    concepts: tuple[UnsafeConcept, ...]
    benign: tuple[BenignConcept, ...]

    @model_validator(mode="after")
    def _consistent(self) -> Taxonomy:
        names = [c.name for c in (*self.concepts, *self.benign)]
        doubled = sorted({n for n in names if names.count(n) > 1})
        if doubled:
            raise ValueError(f"concepts named twice: {', '.join(doubled)}; give each concept one entry")
        known = {c.name for c in self.benign}
        lost = sorted(f"{c.name} -> {c.counterpart}" for c in self.concepts if c.counterpart not in known)
        if lost:
            raise ValueError(f"counterparts missing under 'benign': {', '.join(lost)}")
        return self

    @property
    def categories(self) -> tuple[str, ...]:
        """Return the categories in order of first appearance."""
        return tuple(dict.fromkeys(c.category for c in self.concepts))

    @property
    def names(self) -> tuple[str, ...]:
        """Return every concept's name, unsafe ones first, in file order: the judge's label order."""
        return tuple(c.name for c in (*self.concepts, *self.benign))

    def concept(self, name: str) -> BenignConcept:
        """Return the concept called ``name``; raise KeyError when there is none."""
        for candidate in (*self.concepts, *self.benign):
            if candidate.name == name:
                return candidate
        raise KeyError(f"the taxonomy {self.name!r} has no concept {name!r}")

    def in_category(self, category: str, *, heldout: bool | None = None) -> Sequence[UnsafeConcept]:
        """Return the category's concepts; ``heldout`` filters by split, None keeps both."""
        return [c for c in self.concepts if c.category == category and heldout in (None, c.heldout)]


def find_taxonomy(name: str) -> Taxonomy:
    """Return the embedded taxonomy by its name, or that of a YAML file; raise ConfigError when there is no such file."""
    path = EMBEDDED_TAXONOMY_FILE if name == EMBEDDED_TAXONOMY else Path(name)
    if not path.is_file():
        raise ConfigError(f"no file {path}", field="taxonomy", fix=f"name a YAML file, or {EMBEDDED_TAXONOMY!r}")
    return load_taxonomy(path)


def load_taxonomy(path: Path) -> Taxonomy:
    """Read and validate a taxonomy; raise pydantic's ValidationError with the field that is wrong."""
    return Taxonomy.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
