"""The training set of a category: latents and text states of its image pairs, encoded once, and its schedule.

Each pair gives two rows, one conditioned on the unsafe and one on the safe prompt; the safe image wins in both.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from safety.errors import EmptyDatasetError
from safety.families.family import Conditioning
from safety.seeds import rng
from safety.tensor_format import Head, TensorFormat, Tensors, under

FORMAT = TensorFormat(
    name="safetydpo-preferences-1",
    key="preferences",
    misfit="is not a preference set",
    field="dataset",
    fix="run jobs.generate again",
)
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
    """N pairs and M benign rows of one category (or several, combined); all tensors fp32 on the CPU."""

    category: str
    ids: tuple[str, ...]
    """The pairs' ids, N of them."""
    splits: tuple[str, ...]
    """The pairs' splits, N of them."""
    winner: Tensor
    """Latents of the safe images, [N, C, h, w]."""
    loser: Tensor
    """Latents of the unsafe images, [N, C, h, w]."""
    unsafe: Conditioning
    """The unsafe prompts, [N, ...]."""
    safe: Conditioning
    """The safe prompts, [N, ...]."""
    benign_ids: tuple[str, ...]
    """The benign rows' ids, M of them, M >= 0."""
    benign_splits: tuple[str, ...]
    benign: Tensor
    """Latents of benign images, [M, C, h, w]."""
    benign_prompts: Conditioning
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
            raise EmptyDatasetError(
                f"the category {self.category!r} has no pair in the split {split!r}",
                field="dataset",
                fix="raise generate.counts, or loosen generate.filter, and generate again",
            )
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
            winner=self.winner[pair],
            loser=self.loser[pair],
            unsafe={key: value[pair] for key, value in self.unsafe.items()},
            safe={key: value[pair] for key, value in self.safe.items()},
            benign_ids=tuple(self.benign_ids[i] for i in other),
            benign_splits=tuple(self.benign_splits[i] for i in other),
            benign=self.benign[other],
            benign_prompts={key: value[other] for key, value in self.benign_prompts.items()},
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
        winner=torch.cat([part.winner for part in sets]),
        loser=torch.cat([part.loser for part in sets]),
        unsafe=_join([part.unsafe for part in sets]),
        safe=_join([part.safe for part in sets]),
        benign_ids=tuple(name for part in sets for name in part.benign_ids),
        benign_splits=tuple(name for part in sets for name in part.benign_splits),
        benign=torch.cat([part.benign for part in sets]),
        benign_prompts=_join([part.benign_prompts for part in sets]),
    )
    firsts: dict[str, int] = {}
    for index, name in enumerate(whole.benign_ids):
        firsts.setdefault(name, index)
    return whole._take(range(len(whole)), list(firsts.values()))


def _join(parts: Sequence[Conditioning]) -> Conditioning:
    return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}


def write_preference_file(path: Path, preferences: PreferenceSet) -> Path:
    """Write a set as one safetensors file, atomically; the same set gives the same bytes."""
    head = {
        "category": preferences.category,
        "ids": preferences.ids,
        "splits": preferences.splits,
        "benign_ids": preferences.benign_ids,
        "benign_splits": preferences.benign_splits,
    }
    return FORMAT.write(path, {name: tensor.float() for name, tensor in _tensors(preferences)}, head)


def load_preferences(path: Path) -> PreferenceSet:
    """Read what ``write_preference_file`` wrote; raise ArtifactFormatError when the file is something else."""
    return FORMAT.read(path, _build)


def _build(head: Head, tensors: Tensors) -> PreferenceSet:
    odd = [name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())]
    if odd:
        raise ValueError(f"{odd[0]} holds numbers that are not finite")
    return PreferenceSet(
        category=head["category"],
        ids=tuple(head["ids"]),
        splits=tuple(head["splits"]),
        winner=tensors["winner"],
        loser=tensors["loser"],
        unsafe=under("unsafe", tensors),
        safe=under("safe", tensors),
        benign_ids=tuple(head["benign_ids"]),
        benign_splits=tuple(head["benign_splits"]),
        benign=tensors["benign"],
        benign_prompts=under("benign", tensors),
        empty=under("empty", tensors),
    )


def _tensors(preferences: PreferenceSet) -> Iterator[tuple[str, Tensor]]:
    """Yield the set's tensors under their names in the file."""
    for field in fields(preferences):
        value = getattr(preferences, field.name)
        if isinstance(value, Tensor):
            yield field.name, value
        elif isinstance(value, dict):
            name = field.name.removesuffix("_prompts")
            yield from ((f"{name}/{key}", tensor) for key, tensor in value.items())
