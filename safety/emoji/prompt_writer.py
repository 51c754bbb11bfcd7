"""The emoji world's prompt writer: pairs from its caption grammar, split by scene.

A scene is a combination of concepts and background. Its split is a hash of the scene alone, and both members of a
pair are in the same split, so no scene and no prompt is in two of training, validation and test. The test split has
the scenes that the world's own training never saw (``safety.emoji.scene``).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

from safety.emoji import WRITER
from safety.emoji.caption import DOUBLE_FORMS, SINGLE_FORMS, caption, name_concept
from safety.emoji.scene import BACKGROUNDS, is_reserved
from safety.errors import ConfigError
from safety.prompts.rows import BenignPrompt, BenignSplit, PairSplit, PromptPair, PromptSet, slug
from safety.prompts.writer import PromptCounts, writers
from safety.seeds import rng, uniform
from safety.taxonomy import Taxonomy, UnsafeConcept

Place = Literal["alone", "after", "before"]
VALIDATION_SHARE = 0.25
WORDINGS = 5 * max(len(SINGLE_FORMS), len(DOUBLE_FORMS))
AT_ONCE, BLOCK = 128, 4
"""The most other concepts whose contexts are all drawn at once, and how many at a time where there are more."""


class Context(NamedTuple):
    """A scene without the concept in question: the other concept, whether it comes first, and the background."""

    other: str | None
    other_first: bool
    background: str

    @property
    def place(self) -> Place:
        """Return the concept's place: alone, or after or before the other one."""
        if self.other is None:
            return "alone"
        return "after" if self.other_first else "before"

    def scene(self, concept: str) -> tuple[str, ...]:
        """Return the scene's concepts in the order they are named."""
        if self.other is None:
            return (concept,)
        return (self.other, concept) if self.other_first else (concept, self.other)


def _counterpart(concept: UnsafeConcept) -> str:
    if concept.counterpart is None:
        raise ConfigError(
            f"{concept.name!r} has no counterpart, which this writer puts into its place",
            field="taxonomy.concepts.counterpart",
            fix="name a benign concept as its counterpart, or let a language model write (prompts.writer)",
        )
    return concept.counterpart


def side(concepts: Sequence[str], background: str) -> str:
    """Return the split of a scene: "train", "validation" or "test"."""
    return _side(tuple(sorted(concepts)), background)


@lru_cache(maxsize=1 << 18)
def _side(concepts: tuple[str, ...], background: str) -> str:
    if is_reserved(concepts, background):
        return "test"
    scene = "|".join([*concepts, background])
    return "validation" if uniform(0, scene, "validation-split") < VALIDATION_SHARE else "train"


class _Turn(NamedTuple):
    """A context, and the number of its earlier uses."""

    context: Context
    turn: int


class _Wording(NamedTuple):
    """The wording that a pair's two prompts share: the caption's form and the other concept's phrase."""

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
    """Writes pairs that differ in the concept's noun phrase alone, most with a benign object beside it."""

    version = "3"

    def write(self, taxonomy: Taxonomy, counts: PromptCounts, seed: int) -> PromptSet:
        """Return the prompts; raise ConfigError when there are fewer distinct ones than ``counts`` asks for.

        The time grows with the number of prompts, not with the square of the number of concepts: a concept's contexts
        are drawn as its prompts need them.
        """
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
        benign_wanted: tuple[tuple[BenignSplit, int], ...] = (
            ("train", counts.benign_train),
            ("validation", counts.benign_validation),
            ("test", counts.benign_test),
            ("text_only", counts.benign_text_only),
        )
        for benign_split, count in benign_wanted:
            benign += self._benign(taxonomy, benign_split, count, seed, taken)
        return PromptSet(pairs=tuple(pairs), benign=tuple(benign))

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
            taken.update(pair.prompts)
            yield pair

    def _pairs_of(
        self, taxonomy: Taxonomy, concept: UnsafeConcept, split: PairSplit, seed: int, taken: set[str]
    ) -> Iterator[PromptPair]:
        """Yield a concept's pairs of one split: one-object and two-object scenes in turn while both last."""
        wanted = "test" if split == "heldout" else split
        counterpart = _counterpart(concept)
        others = [b.name for b in taxonomy.benign if b.name != counterpart]
        identity = f"{split}-{slug(concept.category)}-{slug(concept.name)}"

        def fits(c: Context) -> bool:
            return side(c.scene(concept.name), c.background) == side(c.scene(counterpart), c.background) == wanted

        usable = _Usable(_contexts(others, f"{identity}-contexts", seed), fits)
        turns = _training_turns(usable) if split == "train" else _turns(usable)
        for number, context, wording in _worded(taxonomy, turns, identity, seed):
            row_id = f"{identity}-{number:05d}"
            draw = rng(seed, row_id, "words")
            unsafe = wording.prompt(name_concept(taxonomy, concept.name, draw), context)
            safe = wording.prompt(name_concept(taxonomy, counterpart, draw), context)
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
                counterpart=counterpart,
                background=context.background,
                writer=WRITER,
            )

    def _benign(
        self, taxonomy: Taxonomy, split: BenignSplit, count: int, seed: int, taken: set[str]
    ) -> Iterator[BenignPrompt]:
        """Yield a split's benign prompts, the benign concepts in turn."""
        names = [b.name for b in taxonomy.benign]
        rng(seed, _benign_id(split), "order").shuffle(names)
        supplies = [self._benign_of(taxonomy, name, split, seed, taken, index % 2) for index, name in enumerate(names)]
        for number in range(count):
            prompt = next(supplies[number % len(supplies)], None)
            if prompt is None:
                raise self._exhausted(f"benign_{split}", count, f"there are {number}")
            taken.add(prompt.prompt)
            yield prompt

    def _benign_of(
        self, taxonomy: Taxonomy, concept: str, split: BenignSplit, seed: int, taken: set[str], first_turn: int
    ) -> Iterator[BenignPrompt]:
        identity = f"{_benign_id(split)}-{slug(concept)}"
        wanted = "train" if split == "text_only" else split
        others = [b.name for b in taxonomy.benign if b.name != concept]
        usable = _Usable(
            _contexts(others, f"{identity}-contexts", seed), lambda c: side(c.scene(concept), c.background) == wanted
        )
        turns = _turns(usable)
        for number, context, wording in _worded(taxonomy, turns[first_turn:] + turns[:first_turn], identity, seed):
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
            f"{count} prompts are requested and {have} distinct ones",
            field=f"generate.counts.{split}",
            fix="request fewer, or add concepts to the taxonomy",
        )


def _benign_id(split: BenignSplit) -> str:
    """Return the prefix of the ids of a split's benign prompts. Draws depend on it, so it must not change."""
    return f"benign-{split.removesuffix('_only')}"


def _contexts(others: Sequence[str], identity: str, seed: int) -> Iterator[list[Context]]:
    """Yield every context in blocks, each in an order drawn from the seed; those without another concept come first."""
    size = len(others) if len(others) <= AT_ONCE else BLOCK
    start = rng(seed, identity, "first other").randrange(len(others)) if len(others) > AT_ONCE else 0
    around = [*others[start:], *others[:start]]
    for number, first in enumerate(range(0, max(1, len(around)), max(1, size))):
        contexts = [] if number else [Context(None, False, background) for background in BACKGROUNDS]
        chosen = around[first : first + size]
        contexts += [Context(o, before, b) for o in chosen for before in (False, True) for b in BACKGROUNDS]
        rng(seed, identity, number).shuffle(contexts)
        yield contexts


class _Usable:
    """The contexts of which a concept may be named in a split, found as they are needed and kept for further rounds."""

    def __init__(self, blocks: Iterator[list[Context]], fits: Callable[[Context], bool]) -> None:
        self._blocks, self._fits = blocks, fits
        self._found: list[Context] = []
        self._extend()
        self.alone = [context for context in self._found if context.place == "alone"]

    def _extend(self) -> bool:
        block = next(self._blocks, None)
        self._found += filter(self._fits, block or ())
        return block is not None

    def at(self, places: tuple[Place, ...]) -> Iterator[Context]:
        """Yield the contexts of these places."""
        if places == ("alone",):
            yield from self.alone
            return
        index = 0
        while index < len(self._found) or self._extend():
            # A block may hold no context that fits.
            for context in self._found[index:]:
                index += 1
                if context.place in places:
                    yield context


def _supply(usable: _Usable, *places: Place) -> Iterator[_Turn]:
    """Yield the contexts of these places in rounds, with another wording each round.

    A one-object context is used once per form, since its prompts differ in little else.
    """
    for turn in range(len(SINGLE_FORMS) if places == ("alone",) else WORDINGS):
        yield from (_Turn(context, turn) for context in usable.at(places))


def _turns(usable: _Usable) -> list[Iterator[_Turn]]:
    """Return the supplies of one-object and of two-object contexts."""
    return [_supply(usable, "alone"), _supply(usable, "after", "before")]


def _training_turns(usable: _Usable) -> list[Iterator[_Turn]]:
    """Return the supplies of contexts with the concept alone, after another object, before one, and after one.

    A causal text encoder encodes a noun by the words before it: alone and first it is encoded alike, after another
    object it is not. So each of the two cases gets every other prompt.
    """
    after = _supply(usable, "after")
    return [_supply(usable, "alone"), after, _supply(usable, "before"), after]


def _worded(
    taxonomy: Taxonomy, turns: Sequence[Iterator[_Turn]], identity: str, seed: int
) -> Iterator[tuple[int, Context, _Wording]]:
    """Yield (number, context, wording) from the supplies in turn, while they last."""
    waiting, number = deque(turns), 0
    while waiting:
        found = next(waiting[0], None)
        if found is None:
            waiting.popleft()
            continue
        waiting.rotate(-1)
        draw = rng(seed, f"{identity}-{number:05d}", "form")
        shift = rng(seed, f"{identity}-{found.context}", "first form").randrange(len(SINGLE_FORMS))
        other = None if found.context.other is None else name_concept(taxonomy, found.context.other, draw)
        yield number, found.context, _Wording(form=shift + found.turn, other=other)
        number += 1
