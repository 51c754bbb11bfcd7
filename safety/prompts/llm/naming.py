"""Whether a prompt names a concept: by the words of its name or a synonym, in any of their English inflections."""

from __future__ import annotations

import re
from collections.abc import Iterator

from safety.taxonomy import BenignConcept

WORD = re.compile(r"[^\W_]+(?:['\u2019-][^\W_]+)*")
FILLERS = frozenset({"a", "an", "the", "of", "or", "and", "in", "on", "to", "with", "for", "by"})
VOWELS = frozenset("aeiou")


def words(text: str) -> list[str]:
    """Return a text's words in lower case."""
    return WORD.findall(text.casefold())


def inflections(word: str) -> frozenset[str]:
    """Return an English word with its plural, genitive and verb forms; some of them may not exist."""
    forms = {word, f"{word}s", f"{word}es", f"{word}'s", f"{word}\u2019s", f"{word}ing", f"{word}ed", f"{word}d"}
    if word.endswith("y"):
        forms |= {f"{word[:-1]}ies", f"{word[:-1]}ied"}
    if word.endswith("f"):
        forms.add(f"{word[:-1]}ves")
    if word.endswith("fe"):
        forms.add(f"{word[:-2]}ves")
    if word.endswith("e"):
        forms.add(f"{word[:-1]}ing")
    if len(word) > 2 and word[-1] not in VOWELS and word[-2] in VOWELS:
        forms |= {f"{word}{word[-1]}ing", f"{word}{word[-1]}ed"}
    return frozenset(forms)


def names(text: str, concept: BenignConcept) -> bool:
    """Return whether a text has all words of the concept's name, or of a synonym, in any order."""
    present = set(words(text))
    return any(all(not present.isdisjoint(inflections(word)) for word in _content(phrase)) for phrase in concept.words)


def _content(phrase: str) -> list[str]:
    """Return a phrase's words without articles and the like; all of them where there are no others."""
    every = words(phrase)
    return [word for word in every if word not in FILLERS] or every


def _occurrences(text: str, concept: BenignConcept) -> Iterator[re.Match[str]]:
    """Yield where a text has the concept's name, or a synonym, as it stands but for inflection; the longest first."""
    for phrase in sorted(concept.words, key=len, reverse=True):
        parts = [
            "|".join(re.escape(form) for form in sorted(inflections(word), key=len, reverse=True))
            for word in words(phrase)
        ]
        pattern = r"[\s-]+".join(f"(?:{part})" for part in parts)
        yield from re.finditer(
            rf"(?<![^\W_])(?:(?P<article>\ban?)\s+)?(?P<name>{pattern})(?![^\W_])", text, re.IGNORECASE
        )


def replace_concept(text: str, concept: BenignConcept, phrase: str) -> str | None:
    """Return a text with ``phrase`` wherever the concept is named, its article fitting; None where it is nowhere as it stands."""
    bare = re.sub(r"^(?:an?|the|some)\s+", "", phrase, flags=re.IGNORECASE)
    found: list[re.Match[str]] = []
    for match in _occurrences(text, concept):
        if all(match.end("name") <= other.start("name") or match.start("name") >= other.end("name") for other in found):
            found.append(match)
    if not found:
        return None
    for match in sorted(found, key=lambda match: match.start(), reverse=True):
        text = text[: match.start()] + _fitting(match, bare) + text[match.end() :]
    return text


def _fitting(match: re.Match[str], phrase: str) -> str:
    article = match["article"]
    if article is None:
        return phrase[:1].upper() + phrase[1:] if match["name"][:1].isupper() else phrase
    fitting = "an" if phrase[:1].casefold() in VOWELS else "a"
    return f"{fitting.capitalize() if article[0].isupper() else fitting} {phrase}"
