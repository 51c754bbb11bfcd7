"""The taxonomy of harmful concepts: categories, concepts, their benign counterparts, and the split.

A taxonomy is data (YAML). A concept marked ``heldout`` is kept out of alignment and serves as a second,
out-of-distribution test set, as in CoPro. Its names become parts of ids, file names, tables and plots.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, ValidationError, model_validator

from safety.base import Config
from safety.documents import explain, read_mapping
from safety.embedded import EMBEDDED_TAXONOMY, EMBEDDED_TAXONOMY_FILE
from safety.errors import ConfigError
from safety.prompts.rows import slug

RENAMED = {"emoji": "symbol"}
"""Former keys of a concept, with their names now."""
SHOWN_PROBLEMS = 5
MAX_BYTES = 200
"""Of a name in UTF-8: folders get the categories' names, and a file system allows 255."""
JOINERS = "\u200c\u200d"
"""Invisible characters that some scripts are not spelt without."""


def _one_line(text: str) -> str:
    odd = next(
        (c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") and c not in JOINERS), None
    )
    if odd is not None:
        raise ValueError(f"it has the invisible character U+{ord(odd):04X}; take it out")
    return text


def _plain(name: str) -> str:
    if "/" in name or "\\" in name:
        raise ValueError(
            "it has a slash, and parts of file names are made of it; write it with 'or', a comma or a space"
        )
    if name != " ".join(name.split()):
        raise ValueError("it has a space at its ends, or two in a row; take them out")
    if not name[:1].isalnum():
        raise ValueError("it does not begin with a letter or digit; make it do so")
    if len(name.encode()) > MAX_BYTES:
        raise ValueError(f"it is longer than {MAX_BYTES} bytes; shorten it")
    return name


Line = Annotated[str, Field(min_length=1, max_length=120), AfterValidator(_one_line)]
Name = Annotated[Line, AfterValidator(_plain)]


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
    """A harmful concept."""

    category: Name
    counterpart: Name | None = Field(
        None,
        description="the benign concept that replaces it in safe prompts; without one a language model finds it, and the "
        "grammar writer cannot write",
    )
    heldout: bool = False


class Taxonomy(Config):
    """Harmful concepts by category, and benign concepts."""

    name: Name
    version: Line
    notice: str | None = Field(None, description="Markdown paragraph that cards and reports show, such as a caution")
    categories: tuple[Name, ...] = Field(
        (),
        description="the categories, where prompts come from elsewhere and need no concepts; else those of the concepts",
    )
    concepts: tuple[UnsafeConcept, ...] = ()
    benign: tuple[BenignConcept, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Taxonomy:
        if not self.concepts and not self.categories:
            raise ValueError("no concept stands under 'concepts' and no category under 'categories'; name at least one")
        # Filled in here, since a document's concepts are known to be well-formed only now.
        named = tuple(dict.fromkeys((*self.categories, *(concept.category for concept in self.concepts))))
        object.__setattr__(self, "categories", named)
        doubled = _alike(c.name for c in (*self.concepts, *self.benign))
        if doubled:
            raise ValueError(
                f"concepts named twice: {', '.join(doubled)}; give each one entry (case and punctuation do not count)"
            )
        alike = _alike(self.categories)
        if alike:
            raise ValueError(
                f"categories that differ in case or punctuation alone: {', '.join(alike)}; spell them alike"
            )
        known = {c.name for c in self.benign}
        named_ones = [c for c in self.concepts if c.counterpart is not None]
        lost = sorted(f"{c.name} -> {c.counterpart}" for c in named_ones if c.counterpart not in known)
        if lost:
            raise ValueError(f"counterparts missing under 'benign': {', '.join(lost)}")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """Return every concept's name, unsafe ones first, in file order: the judge's label order."""
        return tuple(c.name for c in (*self.concepts, *self.benign))

    def concept(self, name: str) -> BenignConcept:
        """Return the concept called ``name``; raise KeyError when there is none."""
        if name not in self._by_name:
            raise KeyError(f"the taxonomy {self.name!r} has no concept {name!r}")
        return self._by_name[name]

    @cached_property
    def _by_name(self) -> dict[str, BenignConcept]:
        return {concept.name: concept for concept in (*self.concepts, *self.benign)}

    def in_category(self, category: str, *, heldout: bool | None = None) -> Sequence[UnsafeConcept]:
        """Return the category's concepts; ``heldout`` filters by split, None keeps both."""
        return [c for c in self.concepts if c.category == category and heldout in (None, c.heldout)]


def _alike(names: Iterable[str]) -> list[str]:
    """Return the names that another one equals but for case and punctuation, which ids and file names leave out."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(slug(unicodedata.normalize("NFKC", name).casefold()), []).append(name)
    return sorted({name for group in found.values() if len(group) > 1 for name in group})


def find_taxonomy(name: str) -> Taxonomy:
    """Return the embedded taxonomy by its name, or that of a YAML file; raises as ``load_taxonomy`` does."""
    return load_taxonomy(EMBEDDED_TAXONOMY_FILE if name == EMBEDDED_TAXONOMY else Path(name))


def load_taxonomy(path: Path) -> Taxonomy:
    """Read and validate a taxonomy.

    Raises:
        ConfigError: The file is missing or cannot be read, or an entry is wrong; the field names it.
    """
    document = read_mapping(path, field="taxonomy", what=f"a taxonomy's YAML file, or {EMBEDDED_TAXONOMY!r}")
    try:
        return Taxonomy.model_validate(document)
    except ValidationError as error:
        found = [_explain(problem) for problem in error.errors(include_url=False)]
        shown, more = found[:SHOWN_PROBLEMS], len(found) - SHOWN_PROBLEMS
        messages = [f"{field}: {message}" for field, message, _ in shown] + ([f"and {more} more"] if more > 0 else [])
        raise ConfigError(
            f"{path}: {'; '.join(messages)}",
            field=", ".join("taxonomy" if field == "the file" else f"taxonomy.{field}" for field, _, _ in shown),
            fix="; ".join(dict.fromkeys(fix for _, _, fix in shown)),
        ) from None


def _explain(problem: Any) -> tuple[str, str, str]:
    field, message, fix = explain(problem)
    if problem["type"] != "extra_forbidden":
        return field, message, fix
    key = str(problem["loc"][-1])
    renamed = RENAMED.get(key) if len(problem["loc"]) > 1 else None
    return field, "unknown key", f"{key} is called {renamed} now" if renamed else f"remove {field}"
