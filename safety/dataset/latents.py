"""The latents and text states of a group's kept rows as one file, and the training sets that are made of such files.

A pair's prompts are rows of the file's states, in the model's own precision and once for each distinct prompt. Benign
rows have files of their own, which all categories share.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load
from torch import Tensor

from safety.dataset.preferences import PreferenceSet
from safety.dataset.record import Record
from safety.dataset.stack import Rows, Stack
from safety.dataset.summary import BENIGN
from safety.errors import ArtifactFormatError
from safety.families.family import Conditioning
from safety.prompts.rows import slug
from safety.tensor_format import Head, TensorFormat, Tensors, under

FIX = "run jobs.generate again"
FORMAT = TensorFormat(
    name="safetydpo-latents-1", key="latents", misfit="holds no latents of rows", field="dataset", fix=FIX
)
STATES = TensorFormat(name="safetydpo-states-1", key="states", misfit="holds no text states", field="dataset", fix=FIX)
EMPTY_FILE = "latents/empty.safetensors"
"""The empty prompt's text states."""
PAIR_IMAGES, BENIGN_IMAGES = ("winner", "loser"), ("benign",)
PAIR_SIDES, BENIGN_SIDES = ("unsafe", "safe"), ("benign",)
"""The names of a row's prompts, in their order in the row."""


def latents_folder(category: str) -> str:
    """Return the folder of a category's latents in a dataset, and of the benign rows' for "benign"."""
    name = slug(category)
    if not name.isascii():
        # A manifest names files in ASCII; the hash tells apart what is left of two names in another script.
        rest = name.encode("ascii", "ignore").decode().strip("-")
        name = "-".join(filter(None, (rest, hashlib.sha256(name.encode()).hexdigest()[:8])))
    return f"latents/{name}"


def latents_file(category: str, group: int) -> str:
    """Return the name of a group's latents in a dataset."""
    return f"{latents_folder(category)}/{group:06d}.safetensors"


def training_files(categories: Iterable[str]) -> tuple[str, ...]:
    """Return patterns of the files that training on some categories reads: theirs, the benign rows' and the empty prompt's."""
    return (*(f"{latents_folder(name)}/*" for name in (*categories, BENIGN)), EMPTY_FILE)


def dump_latents(category: str, records: Sequence[Record]) -> bytes:
    """Return the file of kept, rendered records of one category, at least one; equal records give equal bytes.

    Raises:
        ValueError: A record has no tensors.
    """
    images, sides = _names(category)
    stacked: dict[str, list[Tensor]] = {}
    known: dict[str, int] = {}
    prompts: dict[str, list[int]] = {side: [] for side in sides}
    for record in records:
        if record.tensors is None:
            raise ValueError(f"{record.row.row_id} has no tensors: it is not a kept, rendered row")
        tensors = load(record.tensors)
        for image in images:
            stacked.setdefault(image, []).append(tensors[image])
        for side, text in zip(sides, record.row.prompts, strict=True):
            if text not in known:
                known[text] = len(known)
                for key, value in under(side, tensors).items():
                    stacked.setdefault(f"states/{key}", []).append(value)
            prompts[side].append(known[text])
    head = {
        "category": category,
        "ids": [record.row.row_id for record in records],
        "splits": [record.row.split for record in records],
        "prompts": prompts,
    }
    return FORMAT.dump({name: torch.stack(rows) for name, rows in stacked.items()}, head)


def _names(category: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names of a row's images and of its prompts."""
    return (BENIGN_IMAGES, BENIGN_SIDES) if category == BENIGN else (PAIR_IMAGES, PAIR_SIDES)


class LatentsFile(NamedTuple):
    """The rows of one file, mapped from it."""

    ids: tuple[str, ...]
    splits: tuple[str, ...]
    latents: dict[str, Tensor]
    """[n, C, h, w], by the images' names."""
    prompts: dict[str, list[int]]
    """The rows' prompts by side, as numbers of ``states``."""
    states: dict[str, Tensor]
    """Distinct prompts, [P, ...] by key."""


def read_latents(path: Path, category: str) -> LatentsFile:
    """Read a file of ``dump_latents``; raise ArtifactFormatError when it is something else, or another category's."""

    def build(head: Head, tensors: Tensors) -> LatentsFile:
        if head["category"] != category:
            raise ValueError(f"its rows are of {head['category']!r}, not of {category!r}")
        odd = [name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())]
        if odd:
            raise ValueError(f"{odd[0]} holds numbers that are not finite")
        images, sides = _names(category)
        found = LatentsFile(
            ids=tuple(head["ids"]),
            splits=tuple(head["splits"]),
            latents={name: tensors[name] for name in images},
            prompts={side: [int(row) for row in head["prompts"][side]] for side in sides},
            states=under("states", tensors),
        )
        count = min((len(rows) for rows in found.states.values()), default=0)
        if any(not 0 <= row < count for rows in found.prompts.values() for row in rows):
            raise ValueError("it names a prompt that it does not hold")
        if {len(found.splits), *map(len, found.latents.values()), *map(len, found.prompts.values())} != {
            len(found.ids)
        }:
            raise ValueError("ids, splits, latents and prompts differ in number")
        return found

    return FORMAT.read(path, build)


def write_empty(path: Path, states: Mapping[str, Tensor]) -> None:
    """Write the empty prompt's text states, {key: [1, ...]}."""
    STATES.write(path, states, {})


def load_preferences(folder: Path, category: str) -> PreferenceSet:
    """Return a category's training set from a dataset's folder, in the order of its groups; nothing is copied from the files.

    Raises:
        ArtifactFormatError: A file is missing or of another kind.
    """
    own, benign = _files(folder, category), _files(folder, BENIGN)
    if not own:
        raise ArtifactFormatError(
            f"the dataset has no latents of {category!r} in {latents_folder(category)}", field="dataset", fix=FIX
        )
    empty = STATES.read(folder / EMPTY_FILE, lambda _, tensors: {key: value.float() for key, value in tensors.items()})
    try:
        winner = _latents(own, "winner")
        return PreferenceSet(
            category=category,
            ids=tuple(name for file in own for name in file.ids),
            splits=tuple(name for file in own for name in file.splits),
            winner=winner,
            loser=_latents(own, "loser"),
            unsafe=_states(own, "unsafe"),
            safe=_states(own, "safe"),
            benign_ids=tuple(name for file in benign for name in file.ids),
            benign_splits=tuple(name for file in benign for name in file.splits),
            benign=_latents(benign, "benign") if benign else torch.zeros(0, *winner.shape[1:]),
            benign_prompts=_states(benign, "benign")
            if benign
            else {key: torch.zeros(0, *value.shape[1:]) for key, value in empty.items()},
            empty=empty,
        )
    except (KeyError, ValueError) as error:
        raise ArtifactFormatError(
            f"the latents of {category!r} do not fit: {error}", field="dataset", fix=FIX
        ) from None


def _files(folder: Path, category: str) -> list[LatentsFile]:
    paths = sorted((folder / latents_folder(category)).glob("*.safetensors"))
    return [read_latents(path, category) for path in paths]


def _latents(files: Sequence[LatentsFile], name: str) -> Stack:
    return Stack([file.latents[name] for file in files])


def _states(files: Sequence[LatentsFile], side: str) -> dict[str, Rows]:
    starts, places = 0, list[int]()
    for file in files:
        places += [starts + row for row in file.prompts[side]]
        starts += len(next(iter(file.states.values())))
    return {key: Stack([file.states[key] for file in files], places) for key in files[0].states}


def preference_set(
    category: str, pairs: Sequence[Record], benign: Sequence[Record], empty: Conditioning
) -> PreferenceSet:
    """Return the training set of kept pairs and benign rows in memory; raise ValueError for a record without tensors."""
    pair_tensors, benign_tensors = _stacked(pairs), _stacked(benign)
    return PreferenceSet(
        category=category,
        ids=tuple(record.row.row_id for record in pairs),
        splits=tuple(record.row.split for record in pairs),
        winner=pair_tensors["winner"],
        loser=pair_tensors["loser"],
        unsafe=under("unsafe", pair_tensors),
        safe=under("safe", pair_tensors),
        benign_ids=tuple(record.row.row_id for record in benign),
        benign_splits=tuple(record.row.split for record in benign),
        benign=benign_tensors["benign"],
        benign_prompts=under("benign", benign_tensors),
        empty=empty,
    )


def _stacked(records: Sequence[Record]) -> dict[str, Tensor]:
    """Return the records' tensors by name in fp32, stacked in the records' order."""
    found: dict[str, list[Tensor]] = {}
    for record in records:
        if record.tensors is None:
            raise ValueError(f"{record.row.row_id} has no tensors: it is not a kept, rendered row")
        for name, tensor in load(record.tensors).items():
            found.setdefault(name, []).append(tensor.float())
    return {name: torch.stack(tensors) for name, tensors in found.items()}
