"""A run's prompts from its sources: merged, split so that no prompt is in two splits, and each left-out row counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from safety.errors import ConfigError
from safety.prompts.card import SourceCard
from safety.prompts.config import PromptsConfig
from safety.prompts.pictures import Picture
from safety.prompts.rows import BenignPrompt, BenignSplit, PairSplit, PromptPair, PromptSet, slug
from safety.prompts.sources.source import (
    NO_CATEGORY,
    NO_SAFE,
    UNKNOWN_CATEGORY,
    CategoryNames,
    SourceConfig,
    SourceContent,
    SourceRow,
    sources,
)
from safety.prompts.writer import PromptCounts
from safety.seeds import uniform
from safety.taxonomy import Taxonomy

LEAKED, NEARLY_LEAKED = "in_test_and_pairs", "nearly_in_test_and_pairs"
"""Prompts of both sides: the same, and the same but for case and spaces."""
DUPLICATE, AMONG_PAIRS, NOT_NEEDED = "duplicate", "among_pairs", "not_needed"
LLM = "llm"
"""The form's name of what a language model wrote."""
Role = str


@dataclass
class _Row:
    """A row with its taxonomy's categories, on its way to a split."""

    id: str
    row: SourceRow
    categories: tuple[str, ...]
    card: int
    """Index of its source's card."""

    @property
    def texts(self) -> tuple[str, ...]:
        return (self.row.prompt,) if self.row.safe is None else (self.row.prompt, self.row.safe)

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(map(key_of, self.texts))


def key_of(prompt: str) -> str:
    """Return what two prompts share that are the same but for case and spaces."""
    return " ".join(prompt.casefold().split())


@dataclass(frozen=True)
class CollectedPrompts:
    """A run's prompts, and what its sources say of them."""

    prompts: PromptSet
    cards: tuple[SourceCard, ...] = ()
    """One per source."""
    pictures: Mapping[str, tuple[Picture, ...]] = field(default_factory=dict)
    """By row id: of a pair the unsafe prompt's and the safe one's, of a benign prompt its own. The others are rendered."""


@dataclass(frozen=True)
class WrittenPairs:
    """Pairs that a language model wrote, as a source's content."""

    model: str
    sha256: str
    """Of the drafts."""
    content: SourceContent
    """Its rows have one label, a category of the taxonomy, and their concept."""


class PromptCollection:
    """Reads sources and divides their rows; the result is a function of the files, the config, the counts and the seed."""

    def __init__(self, config: PromptsConfig, taxonomy: Taxonomy, counts: PromptCounts, seed: int) -> None:
        self.config, self.taxonomy, self.counts, self.seed = config, taxonomy, counts, seed
        self.cards: list[SourceCard] = []
        self.pictures: dict[str, tuple[Picture, ...]] = {}
        self._heldout = {concept.name for concept in taxonomy.concepts if concept.heldout}

    def collect(self, written: WrittenPairs | None = None) -> CollectedPrompts:
        """Return the prompts, one card per source, and the pictures that sources have.

        Args:
            written: What the language model of ``prompts.writer`` wrote.

        Raises:
            ArtifactFormatError: A file is missing, or not of its form.
            ConfigError: A source has no row of the taxonomy's categories, or there are too few benign prompts.
        """
        read = [row for source in self.config.pairs for row in self._read("pairs", source)]
        pairs = self._merged([*read, *(() if written is None else self._written(written))])
        test = self._merged([row for source in self.config.test for row in self._read("test", source)])
        pairs, test = self._without_leaks(pairs, test)
        self._count_recurring(pairs)
        splits = self._splits(pairs)
        found = [self._pair(row, splits[row.id]) for row in pairs] + [self._pair(row, "test") for row in test]
        benign = self._benign([key for row in (*pairs, *test) for key in row.keys])
        prompts = PromptSet(pairs=tuple(found), benign=tuple(benign))
        prompts.check()
        return CollectedPrompts(prompts, tuple(card.checked() for card in self.cards), self.pictures)

    def _read(self, role: Role, source: SourceConfig) -> list[_Row]:
        """Read a source, begin its card, and return the rows of the taxonomy's categories."""
        self._require_categories(role, source)
        content = sources[source.source].read(source)
        number = len(self.cards)
        self.cards.append(_card(role, source, content))
        found = [
            # Not named by the file: what it is called must not change a row's noise.
            self._known(f"{role}-{number}-{row.number:07d}", role, row, source)
            for row in content.rows
        ]
        kept = [row for row in found if row is not None]
        if not kept:
            card = self.cards[number]
            raise ConfigError(
                f"{source.path} has no row to use as {role}: {card.describe_refused()}",
                field=f"prompts.{role}",
                fix="name the taxonomy's category of each label (labels), or another file",
            )
        return kept

    def _written(self, written: WrittenPairs) -> list[_Row]:
        """Begin the card of what a language model wrote, and return its rows."""
        content, number = written.content, len(self.cards)
        self.cards.append(
            SourceCard(
                role="pairs",
                source=LLM,
                file=written.model,
                sha256=written.sha256,
                encoding=content.encoding,
                lines=content.lines,
                refused=Counter(content.refused),
            )
        )
        # By concept and draw, so that more pairs of each concept leave the others' ids, and so their noise, as they are.
        return [
            _Row(f"{LLM}-{slug(row.concept or '')}-{row.number:05d}", row, row.labels, number) for row in content.rows
        ]

    def _require_categories(self, role: Role, source: SourceConfig) -> None:
        names = CategoryNames(self.taxonomy.categories, {})
        unknown = sorted({name for name in source.labels.values() if names.find(name) is None})
        if unknown:
            raise ConfigError(
                f"the taxonomy has no category {', '.join(map(repr, unknown))}",
                field=f"prompts.{role}.labels",
                fix=f"use some of: {', '.join(self.taxonomy.categories)}",
            )

    def _known(self, name: str, role: Role, row: SourceRow, source: SourceConfig) -> _Row | None:
        """Return a row with its categories, or None and count why not."""
        number = len(self.cards) - 1
        if role == "benign":
            own = row.pictures if row.safe is None else ()
            return _Row(name, SourceRow(row.number, row.prompt, pictures=own), (), number)
        if role == "pairs" and row.safe is None:
            self._refuse(number, NO_SAFE)
            return None
        names = CategoryNames(self.taxonomy.categories, source.labels)
        known = {label: names.find(label) for label in row.labels}
        categories = tuple(dict.fromkeys(name for name in known.values() if name is not None))
        for label, category in known.items():
            if category is None:
                self.cards[number].unknown_labels[label] += 1
        if not categories:
            self._refuse(number, UNKNOWN_CATEGORY if known else NO_CATEGORY)
            return None
        return _Row(name, row, categories, number)

    def _refuse(self, card: int, reason: str) -> None:
        self.cards[card].refused[reason] += 1

    def _merged(self, rows: Sequence[_Row]) -> list[_Row]:
        """Return each distinct row once, with the categories of all that say the same."""
        found: dict[tuple[str, ...], _Row] = {}
        for row in rows:
            first = found.setdefault(row.keys, row)
            if first is not row:
                first.categories = tuple(dict.fromkeys((*first.categories, *row.categories)))
                if not first.row.pictures:
                    first.row = replace(first.row, pictures=row.row.pictures)
                self.cards[row.card].merged += 1
        return list(found.values())

    def _without_leaks(self, pairs: list[_Row], test: list[_Row]) -> tuple[list[_Row], list[_Row]]:
        """Return pairs and test rows that share no prompt; the config says which side loses."""
        loser, other = (test, pairs) if self.config.leaks == "test" else (pairs, test)
        taken = {key for row in other for key in row.keys}
        exactly = {text.strip() for row in other for text in row.texts}
        kept = []
        for row in loser:
            if taken.isdisjoint(row.keys):
                kept.append(row)
            else:
                same = not exactly.isdisjoint(text.strip() for text in row.texts)
                self._refuse(row.card, LEAKED if same else NEARLY_LEAKED)
        return (pairs, kept) if loser is test else (kept, test)

    def _count_recurring(self, pairs: Sequence[_Row]) -> None:
        """Count the unsafe prompts that stand in several pairs, on the first one's card."""
        first: dict[str, _Row] = {}
        seen: Counter[str] = Counter()
        for row in pairs:
            key = row.keys[0]
            first.setdefault(key, row)
            seen[key] += 1
        for key, count in seen.items():
            if count > 1:
                self.cards[first[key].card].recurring += 1

    def _splits(self, pairs: Sequence[_Row]) -> dict[str, PairSplit]:
        """Return each pair's split; pairs that share a prompt are in one, and each category has its share of each.

        Pairs of a concept that the taxonomy holds out are held out, with those that share a prompt with them.
        """
        by_category: dict[str, list[list[_Row]]] = {}
        found: dict[str, PairSplit] = {}
        for group in _connected(pairs):
            if any(row.row.concept in self._heldout for row in group):
                found |= {row.id: "heldout" for row in group}
            else:
                by_category.setdefault(group[0].categories[0], []).append(group)
        for groups in by_category.values():
            ordered = sorted(groups, key=lambda group: uniform(self.seed, group[0].id, "prompt-split"))
            for group, split in zip(ordered, self._shared_out([len(group) for group in ordered]), strict=True):
                found |= {row.id: split for row in group}
        self._require_training(pairs, found)
        return found

    def _shared_out(self, sizes: Sequence[int]) -> list[PairSplit]:
        """Return the split of each group of a category, by their sizes in the order of their draws.

        A group goes to the test or the validation while it fits there, and else to the training. A split that none fits
        takes the smallest one that the training can spare.
        """
        rows = sum(sizes)
        test_share = 0.0 if self.config.test else self.config.test_share
        left: dict[PairSplit, int] = {
            "test": _share(test_share, rows),
            "validation": _share(self.config.validation_share, rows),
        }
        wanted = [split for split, count in left.items() if count]
        found: list[PairSplit] = []
        for size in sizes:
            split: PairSplit = next((name for name in wanted if left[name] >= size), "train")
            found.append(split)
            if split != "train":
                left[split] -= size
        for name in reversed(wanted):  # the validation first: without it there is no merge
            spare = [index for index, split in enumerate(found) if split == "train"]
            if name not in found and len(spare) > 1:
                found[min(spare, key=lambda index: sizes[index])] = name
        return found

    def _require_training(self, pairs: Sequence[_Row], splits: Mapping[str, PairSplit]) -> None:
        """Raise ConfigError for a category that has pairs, but none to train on or none to choose the merge by."""
        counts: dict[str, Counter[str]] = {}
        for row in pairs:
            counts.setdefault(row.categories[0], Counter())[splits[row.id]] += 1
        for category, found in counts.items():
            lost = [split for split in ("train", "validation") if not found[split]]
            if lost and found.total() > found["heldout"]:
                raise ConfigError(
                    f"the {found.total()} pairs of the category {category!r} leave none for the split {lost[0]!r}: pairs that "
                    "share a prompt stay together",
                    field="prompts.pairs",
                    fix=f"give more pairs of {category!r} with prompts of their own, or take the category out of the taxonomy",
                )

    def _pair(self, row: _Row, split: PairSplit) -> PromptPair:
        category, *others = row.categories
        self.cards[row.card].count(category, split)
        self._note_pictures(row)
        return PromptPair(
            pair_id=row.id,
            category=category,
            other_categories=tuple(others),
            concept=row.row.concept,
            split=split,
            unsafe_prompt=row.row.prompt,
            safe_prompt=row.row.safe,
            writer=self.cards[row.card].source,
        )

    def _note_pictures(self, row: _Row) -> None:
        if row.row.pictures:
            self.cards[row.card].pictures += 1
            self.pictures[row.id] = row.row.pictures

    def _benign(self, taken: Iterable[str]) -> list[BenignPrompt]:
        """Return as many benign prompts of each split as the counts say, none of them a pair's own."""
        rows = self._merged([row for source in self.config.benign for row in self._read("benign", source)])
        among = set(taken)
        free = [row for row in rows if among.isdisjoint(row.keys)]
        for row in rows:
            if not among.isdisjoint(row.keys):
                self._refuse(row.card, AMONG_PAIRS)
        ordered = sorted(free, key=lambda row: uniform(self.seed, row.id, "prompt-split"))
        wanted = benign_counts(self.counts)
        self._require_benign(len(ordered), wanted)
        found: list[BenignPrompt] = []
        for split, count in wanted.items():
            for row in ordered[len(found) : len(found) + count]:
                source = self.cards[row.card]
                source.count("benign", split)
                self._note_pictures(row)
                found.append(BenignPrompt(prompt_id=row.id, prompt=row.row.prompt, split=split, writer=source.source))
        for row in ordered[len(found) :]:
            self._refuse(row.card, NOT_NEEDED)
        return found

    def _require_benign(self, count: int, wanted: Mapping[BenignSplit, int]) -> None:
        needed = sum(wanted.values()) - wanted["text_only"]
        if count < needed:
            raise ConfigError(
                f"the benign sources have {count} prompts and {needed} are wanted",
                field="prompts.benign, generate.counts",
                fix="name more of them, or lower generate.counts.benign_train, benign_validation and benign_test",
            )


def benign_counts(counts: PromptCounts) -> dict[BenignSplit, int]:
    """Return how many benign prompts of each split are wanted; what is left over is "text_only", up to its count."""
    return {
        "validation": counts.benign_validation,
        "test": counts.benign_test,
        "train": counts.benign_train,
        "text_only": counts.benign_text_only,
    }


def _card(role: Role, source: SourceConfig, content: SourceContent) -> SourceCard:
    return SourceCard(
        role=role,
        source=source.source,
        file=source.path.name,
        sha256=source.content_hash(),
        encoding=content.encoding,
        lines=content.lines,
        merged=content.merged,
        refused=Counter(content.refused),
    )


def _connected(pairs: Sequence[_Row]) -> list[list[_Row]]:
    """Return the pairs in groups that share a prompt, also by way of a third pair, each in the order of its ids."""
    parent: dict[str, str] = {row.id: row.id for row in pairs}

    def root(name: str) -> str:
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    owner: dict[str, str] = {}
    for row in pairs:
        for key in row.keys:
            parent[root(row.id)] = root(owner.setdefault(key, row.id))
    groups: dict[str, list[_Row]] = {}
    for row in sorted(pairs, key=lambda row: row.id):
        groups.setdefault(root(row.id), []).append(row)
    return list(groups.values())


def _share(share: float, rows: int) -> int:
    """Return a share of rows, at least one where it is not zero."""
    return max(1, round(share * rows)) if share else 0
