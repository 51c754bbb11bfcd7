"""The training set of a category: latents and text states of its image pairs, encoded once, and its schedule.

Each pair gives two rows, one conditioned on the unsafe and one on the safe prompt; the safe image wins in both. Sets are
read from a dataset's files by ``safety.dataset.latents``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from safety.dataset.stack import Rows, Stack, join, take
from safety.errors import EmptyDatasetError
from safety.families.family import Conditioning
from safety.seeds import rng

States = Mapping[str, Rows]
"""Encoded prompts of many rows by key, as ``Conditioning`` has them of a batch."""
SIDES = ("unsafe", "safe")


class PreferenceRow(NamedTuple):
    """One preference row of a schedule: a pair under one of its two prompts."""

    pair: int
    """The pair's index in the set."""
    side: str
    """The prompt that it is conditioned on: "unsafe" or "safe"."""
    draw: int
    """Number of earlier visits to the row in the schedule; names its random draws."""


class BenignRow(NamedTuple):
    """One benign row of a schedule."""

    place: int
    """The row's index in the set."""
    draw: int
    """Number of earlier visits to the row in the schedule."""


@dataclass(frozen=True)
class PreferenceSet:
    """N pairs and M benign rows of one category (or several, combined); what is gathered is fp32 on the CPU."""

    category: str
    ids: tuple[str, ...]
    """The pairs' ids, N of them."""
    splits: tuple[str, ...]
    """The pairs' splits, N of them."""
    winner: Rows
    """Latents of the safe images, [N, C, h, w]."""
    loser: Rows
    """Latents of the unsafe images, [N, C, h, w]."""
    unsafe: States
    """The unsafe prompts, [N, ...]."""
    safe: States
    """The safe prompts, [N, ...]."""
    benign_ids: tuple[str, ...]
    """The benign rows' ids, M of them, M >= 0."""
    benign_splits: tuple[str, ...]
    benign: Rows
    """Latents of benign images, [M, C, h, w]."""
    benign_prompts: States
    """The benign prompts, [M, ...]."""
    empty: Conditioning
    """The empty prompt, [1, ...], for caption dropout."""

    def __post_init__(self) -> None:
        """Raise ValueError when the parts do not have the same number of entries or the same keys."""
        if not self.unsafe.keys() == self.safe.keys() == self.empty.keys() == self.benign_prompts.keys():
            raise ValueError("the unsafe, safe, benign and empty prompts have different keys")
        if len(self.splits) != len(self.ids) or len(self.benign_splits) != len(self.benign_ids):
            raise ValueError("ids and splits differ in number")
        wanted = {"benign": len(self.benign_ids), "empty": 1}
        for name, tensor in _tensors(self):
            count = wanted.get(name.split("/")[0], len(self.ids))
            if len(tensor) != count:
                raise ValueError(f"{name} has {len(tensor)} entries instead of {count}")

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self.ids)

    def row_id(self, row: PreferenceRow) -> str:
        """Return the name of a row in random draws: ``<pair id>/unsafe`` or ``<pair id>/safe``."""
        return f"{self.ids[row.pair]}/{row.side}"

    def rows(self, split: str) -> PreferenceSet:
        """Return one split's pairs and benign rows; raise EmptyDatasetError when it has no pair."""
        chosen = [i for i, name in enumerate(self.splits) if name == split]
        if not chosen:
            raise no_pair(self.category, split)
        return self._take(chosen, [i for i, name in enumerate(self.benign_splits) if name == split])

    def conditioning(self, rows: Sequence[PreferenceRow]) -> Conditioning:
        """Return the rows' prompts, [len(rows), ...]."""
        return {
            key: torch.stack([(self.safe if row.side == "safe" else self.unsafe)[key][row.pair] for row in rows])
            for key in self.unsafe
        }

    def schedule(self, seed: int, step: int, size: int) -> list[PreferenceRow]:
        """Return the ``size`` rows of a step, from shuffled epochs; a function of (seed, step) alone."""
        order = _walk(seed, f"{self.category}/pairs", step, size, len(self) * len(SIDES))
        return [PreferenceRow(place // len(SIDES), SIDES[place % len(SIDES)], epoch) for place, epoch in order]

    def benign_schedule(self, seed: int, step: int, size: int) -> list[BenignRow]:
        """Return the step's benign rows in the same manner; none when the set has none."""
        order = _walk(seed, f"{self.category}/benign", step, size, len(self.benign_ids))
        return [BenignRow(place, epoch) for place, epoch in order]

    def _take(self, pairs: Sequence[int], benign: Sequence[int]) -> PreferenceSet:
        pair, other = list(pairs), list(benign)
        return replace(
            self,
            ids=tuple(self.ids[i] for i in pair),
            splits=tuple(self.splits[i] for i in pair),
            winner=take(self.winner, pair),
            loser=take(self.loser, pair),
            unsafe={key: take(value, pair) for key, value in self.unsafe.items()},
            safe={key: take(value, pair) for key, value in self.safe.items()},
            benign_ids=tuple(self.benign_ids[i] for i in other),
            benign_splits=tuple(self.benign_splits[i] for i in other),
            benign=take(self.benign, other),
            benign_prompts={key: take(value, other) for key, value in self.benign_prompts.items()},
        )


def no_pair(category: str, split: str) -> EmptyDatasetError:
    """Return the error of a set without a pair in a split."""
    return EmptyDatasetError(
        f"the category {category!r} has no pair in the split {split!r}",
        field="dataset",
        fix="raise generate.counts, or loosen generate.filter, and generate again",
    )


def _walk(seed: int, name: str, step: int, size: int, count: int) -> Iterator[tuple[int, int]]:
    """Yield (place, epoch) of a step's entries; every epoch visits each of ``count`` entries once."""
    for position in range(step * size, (step + 1) * size) if count else ():
        epoch, place = divmod(position, count)
        yield _order(seed, name, epoch, count)[place], epoch


@lru_cache(maxsize=64)
def _order(seed: int, name: str, epoch: int, count: int) -> tuple[int, ...]:
    order = list(range(count))
    rng(seed, name, f"epoch-{epoch}").shuffle(order)
    return tuple(order)


def combine(sets: Sequence[PreferenceSet], category: str) -> PreferenceSet:
    """Return all sets' pairs as one set called ``category``; a benign row in several of them is kept once.

    Raises:
        ValueError: There is no set, or a pair occurs in two of them.
    """
    ids = tuple(name for part in sets for name in part.ids)
    if not sets or len(set(ids)) != len(ids):
        raise ValueError("no set to combine, or a pair that occurs in two of them")
    whole = replace(
        sets[0],
        category=category,
        ids=ids,
        splits=tuple(name for part in sets for name in part.splits),
        winner=join([part.winner for part in sets]),
        loser=join([part.loser for part in sets]),
        unsafe=_join([part.unsafe for part in sets]),
        safe=_join([part.safe for part in sets]),
        benign_ids=tuple(name for part in sets for name in part.benign_ids),
        benign_splits=tuple(name for part in sets for name in part.benign_splits),
        benign=join([part.benign for part in sets]),
        benign_prompts=_join([part.benign_prompts for part in sets]),
    )
    firsts: dict[str, int] = {}
    for index, name in enumerate(whole.benign_ids):
        firsts.setdefault(name, index)
    return whole._take(range(len(whole)), list(firsts.values()))


def _join(parts: Sequence[States]) -> States:
    return {key: join([part[key] for part in parts]) for key in parts[0]}


def _tensors(preferences: PreferenceSet) -> Iterator[tuple[str, Rows]]:
    """Yield the set's rows by name: the field's, and for prompts ``unsafe/states`` and so on."""
    for field in fields(preferences):
        value = getattr(preferences, field.name)
        if isinstance(value, (Tensor, Stack)):
            yield field.name, value
        elif isinstance(value, Mapping):
            name = field.name.removesuffix("_prompts")
            yield from ((f"{name}/{key}", tensor) for key, tensor in value.items())
