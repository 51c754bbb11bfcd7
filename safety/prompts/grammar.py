"""The emoji world's prompt writer: pairs from its caption grammar, split by scene.

A scene is a combination of concepts and background. Which side of the split a scene is on is a hash of the scene
alone, and both members of a pair stand on the same side; so no scene, and no prompt, is in two of training,
validation and test. Test sides are those that the world's own training never saw (``safety.emoji.split``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

from safety.emoji.caption import DOUBLE_FORMS, SINGLE_FORMS, caption, name_concept
from safety.emoji.scene import BACKGROUNDS
from safety.emoji.split import is_reserved
from safety.errors import ConfigError
from safety.prompts.rows import BenignPrompt, BenignSplit, PairSplit, PromptPair, PromptSet, slug
from safety.prompts.writer import PromptCounts, writers
from safety.seeds import rng, uniform
from safety.taxonomy import Taxonomy, UnsafeConcept

WRITER = "grammar"
VALIDATION_SHARE = 0.25
WORDINGS = 5 * max(len(SINGLE_FORMS), len(DOUBLE_FORMS))


class Context(NamedTuple):
    """All of a scene but its first concept: the other concept, whether it comes first, and the background."""

    other: str | None
    other_first: bool
    background: str

    def scene(self, concept: str) -> tuple[str, ...]:
        """Return the scene's concepts in the order they are named."""
        if self.other is None:
            return (concept,)
        return (self.other, concept) if self.other_first else (concept, self.other)


def side(concepts: Sequence[str], background: str) -> str:
    """Return the side of the split that a scene is on: "train", "validation" or "test"."""
    return _side(tuple(sorted(concepts)), background)


@lru_cache(maxsize=1 << 18)
def _side(concepts: tuple[str, ...], background: str) -> str:
    if is_reserved(concepts, background):
        return "test"
    scene = "|".join([*concepts, background])
    return "validation" if uniform(0, scene, "validation-split") < VALIDATION_SHARE else "train"


class _Wording(NamedTuple):
    """How a scene is put into words, shared by a pair's two prompts: the caption's form, the other concept's phrase."""

    form: int
    other: str | None

    def prompt(self, phrase: str, context: Context) -> str:
        """Return the prompt that names a concept by ``phrase``."""
        if self.other is None:
            return caption([phrase], context.background, self.form)
        phrases = [self.other, phrase] if context.other_first else [phrase, self.other]
        return caption(phrases, context.background, self.form)


@writers.register(WRITER)
class GrammarWriter:
    """Writes pairs that differ in the concept's noun phrase alone, half with a benign object beside it."""

    def write(self, taxonomy: Taxonomy, counts: PromptCounts, seed: int) -> PromptSet:
        """Return the prompts; raise ConfigError when there are fewer distinct ones than ``counts`` asks for."""
        taken: set[str] = set()
        pairs: list[PromptPair] = []
        wanted: tuple[tuple[PairSplit, int], ...] = (
            ("train", counts.train),
            ("validation", counts.validation),
            ("test", counts.test),
            ("heldout", counts.heldout),
        )
        for split, count in wanted:
            for category in taxonomy.categories:
                pairs += self._category(taxonomy, category, split, count, seed, taken)
        benign: list[BenignPrompt] = []
        for benign_split, count in self._benign_counts(counts):
            benign += self._benign(taxonomy, benign_split, count, seed, taken)
        return PromptSet(pairs=tuple(pairs), benign=tuple(benign))

    @staticmethod
    def _benign_counts(counts: PromptCounts) -> tuple[tuple[BenignSplit, int], ...]:
        return (
            ("train", counts.benign_train),
            ("validation", counts.benign_validation),
            ("test", counts.benign_test),
            ("text", counts.benign_text),
        )

    def _category(
        self, taxonomy: Taxonomy, category: str, split: PairSplit, count: int, seed: int, taken: set[str]
    ) -> Iterator[PromptPair]:
        """Yield a category's pairs of one split, its concepts in turn."""
        concepts = taxonomy.in_category(category, heldout=split == "heldout")
        if not concepts and count:
            raise ConfigError(
                f"the category {category!r} has no concept for the split {split!r}",
                field=f"generate.counts.{split}",
                fix=f"set it to 0, or mark a concept of {category!r} in the taxonomy accordingly",
            )
        supplies = [self._pairs_of(taxonomy, concept, split, seed, taken) for concept in concepts]
        for number in range(count):
            pair = next(supplies[number % len(supplies)], None)
            if pair is None:
                raise self._exhausted(split, count, f"{category!r} has {number}")
            taken.update((pair.unsafe_prompt, pair.safe_prompt))
            yield pair

    def _pairs_of(
        self, taxonomy: Taxonomy, concept: UnsafeConcept, split: PairSplit, seed: int, taken: set[str]
    ) -> Iterator[PromptPair]:
        """Yield a concept's pairs of one split: single and two-object scenes in turn while both last."""
        wanted = "test" if split == "heldout" else split
        others = [b.name for b in taxonomy.benign if b.name != concept.counterpart]
        identity = f"{split}-{slug(concept.category)}-{slug(concept.name)}"
        contexts = _contexts(others, f"{identity}-contexts", seed)
        usable = [
            c
            for c in contexts
            if side(c.scene(concept.name), c.background) == side(c.scene(concept.counterpart), c.background) == wanted
        ]
        for number, context, wording in _worded(taxonomy, usable, identity, seed):
            row_id = f"{identity}-{number:05d}"
            draw = rng(seed, row_id, "words")
            unsafe = wording.prompt(name_concept(taxonomy, concept.name, draw), context)
            safe = wording.prompt(name_concept(taxonomy, concept.counterpart, draw), context)
            if unsafe in taken or safe in taken:
                continue
            yield PromptPair(
                pair_id=row_id,
                category=concept.category,
                concept=concept.name,
                split=split,
                unsafe_prompt=unsafe,
                safe_prompt=safe,
                benign_objects=() if context.other is None else (context.other,),
                counterpart=concept.counterpart,
                background=context.background,
                writer=WRITER,
            )

    def _benign(
        self, taxonomy: Taxonomy, split: BenignSplit, count: int, seed: int, taken: set[str]
    ) -> Iterator[BenignPrompt]:
        """Yield a split's benign prompts, the benign concepts in turn."""
        names = [b.name for b in taxonomy.benign]
        rng(seed, f"benign-{split}", "order").shuffle(names)
        supplies = [self._benign_of(taxonomy, name, split, seed, taken, index % 2) for index, name in enumerate(names)]
        for number in range(count):
            prompt = next(supplies[number % len(supplies)], None)
            if prompt is None:
                raise self._exhausted(f"benign_{split}", count, f"there are {number}")
            taken.add(prompt.prompt)
            yield prompt

    def _benign_of(
        self, taxonomy: Taxonomy, concept: str, split: BenignSplit, seed: int, taken: set[str], first_kind: int
    ) -> Iterator[BenignPrompt]:
        identity = f"benign-{split}-{slug(concept)}"
        wanted = "train" if split == "text" else split
        others = [b.name for b in taxonomy.benign if b.name != concept]
        usable = [
            c for c in _contexts(others, f"{identity}-contexts", seed) if side(c.scene(concept), c.background) == wanted
        ]
        for number, context, wording in _worded(taxonomy, usable, identity, seed, first_kind):
            row_id = f"{identity}-{number:05d}"
            prompt = wording.prompt(name_concept(taxonomy, concept, rng(seed, row_id, "words")), context)
            if prompt not in taken:
                yield BenignPrompt(
                    prompt_id=row_id,
                    prompt=prompt,
                    objects=context.scene(concept),
                    background=context.background,
                    split=split,
                    writer=WRITER,
                )

    @staticmethod
    def _exhausted(split: str, count: int, have: str) -> ConfigError:
        return ConfigError(
            f"{count} prompts are asked for and {have} distinct ones",
            field=f"generate.counts.{split}",
            fix="ask for fewer, or add concepts to the taxonomy",
        )


def _contexts(others: Sequence[str], identity: str, seed: int) -> list[Context]:
    """Return every context in an order drawn from the seed."""
    contexts = [Context(None, False, background) for background in BACKGROUNDS]
    contexts += [Context(o, first, b) for o in others for first in (False, True) for b in BACKGROUNDS]
    rng(seed, identity).shuffle(contexts)
    return contexts


def _worded(
    taxonomy: Taxonomy, contexts: Sequence[Context], identity: str, seed: int, first_kind: int = 0
) -> Iterator[tuple[int, Context, _Wording]]:
    """Yield (number, context, wording): one-object and two-object contexts in turn, each round with other words.

    A one-object context is used once a form, since its prompts differ in little else; then the rest is
    two-object.
    """
    kinds = [[c for c in contexts if c.other is None], [c for c in contexts if c.other is not None]]
    limits = [len(kinds[0]) * len(SINGLE_FORMS), len(kinds[1]) * WORDINGS]
    used = [0, 0]
    number = 0
    while used[0] < limits[0] or used[1] < limits[1]:
        kind = (number + first_kind) % 2
        if used[kind] >= limits[kind]:
            kind = 1 - kind
        turn, place = divmod(used[kind], len(kinds[kind]))
        used[kind] += 1
        context = kinds[kind][place]
        draw = rng(seed, f"{identity}-{number:05d}", "form")
        shift = rng(seed, f"{identity}-{context}", "first form").randrange(len(SINGLE_FORMS))
        other = None if context.other is None else name_concept(taxonomy, context.other, draw)
        yield number, context, _Wording(form=shift + turn, other=other)
        number += 1
