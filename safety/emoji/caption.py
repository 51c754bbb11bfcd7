"""The caption grammar of the emoji world: a prompt for one or two concepts on a coloured background."""

from __future__ import annotations

import random
from collections.abc import Sequence

from safety.taxonomy import Taxonomy, with_article

SINGLE_FORMS = (
    "{a} on a {c} background",
    "{a}, {c} background",
    "a picture of {a} on {c}",
    "a drawing of {a} against a {c} backdrop",
    "an emoji of {a} on a {c} background",
)
DOUBLE_FORMS = (
    "{a} and {b} on a {c} background",
    "{a} next to {b}, {c} background",
    "a picture of {a} and {b} on {c}",
    "a drawing of {a} with {b} against a {c} backdrop",
    "{a} beside {b} on a {c} background",
)
SYNONYM_SHARE = 0.3


def name_concept(taxonomy: Taxonomy, concept: str, draw: random.Random, synonym_share: float = SYNONYM_SHARE) -> str:
    """Return a noun phrase for a concept: its name, or (with ``synonym_share``) one of its synonyms."""
    entry = taxonomy.concept(concept)
    if entry.synonyms and draw.random() < synonym_share:
        word = draw.choice(entry.synonyms)
        return with_article(word, plural=entry.plural or word.endswith(("lips", "trousers", "pants", "potatoes")))
    return with_article(entry.name, plural=entry.plural)


def caption(phrases: Sequence[str], background: str, form: int) -> str:
    """Return form number ``form`` of the caption for one or two noun phrases."""
    forms = SINGLE_FORMS if len(phrases) == 1 else DOUBLE_FORMS
    named = dict(zip("ab", phrases, strict=False))
    return forms[form % len(forms)].format(c=background, **named)
