"""The finished groups of a dataset: their files, stored as the dataset's own, and their figures in the work area.

A worker stores a group's files under the dataset's keys, named by their hashes, and then writes the group's figures,
which name them. So a group is finished or not, however its worker ends; the dataset's manifest is made of the figures.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress

from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from cluster.errors import CorruptArtifact
from cluster.store.artifacts import ArtifactStore
from cluster.store.manifest import FileEntry
from jobs.run.artifacts import ArtifactRef
from jobs.run.work_area import RERUN, NumberedGroups
from safety.dataset.group_files import (
    GroupFigures,
    StoredFile,
    group_figures,
    group_files,
    group_samples,
    sample_strip,
)
from safety.dataset.latents import EMPTY_FILE
from safety.dataset.published import data_file, read_images
from safety.dataset.record import Record
from safety.errors import ArtifactFormatError

EMPTY = "empty.safetensors"
FIGURES_FILE = "groups.jsonl"
"""The groups' figures in the dataset, from which one of them can be rebuilt alone."""


class GroupStore(NumberedGroups[GroupFigures]):
    """The figures of a dataset's finished groups, and the empty prompt's text states, in the store's work area."""

    def __init__(self, store: ArtifactStore, ref: ArtifactRef) -> None:
        super().__init__(store, ref, _dump, GroupFigures.model_validate_json, "json")
        self.store, self.ref = store, ref

    def store_group(self, number: int, records: Sequence[Record], model: str) -> GroupFigures:
        """Store a judged group's files and samples, and then its figures; of several writers of a group the first wins.

        Args:
            number: The group's number.
            records: All of its rows.
            model: The base model's name.

        Returns:
            The figures in the store, which may be those of an earlier writer.
        """
        files = {}
        for file in group_files(number, records, model):
            entry = self.store.add(*self.ref, file.name, file.data)
            files[file.name] = StoredFile(size=entry.size, sha256=entry.sha256)
        samples = group_samples(records)
        if samples is not None:
            self.area.write(_samples(number), samples)
        self.write(number, group_figures(records, files))
        return self.read(number)

    def samples(self, number: int, figures: GroupFigures) -> bytes | None:
        """Return the strip of a group's samples, or None when no training pair is kept.

        It is a small piece of the work area, and is made of the group's shard where that piece was lost.

        Raises:
            CorruptArtifact: The shard is corrupt; it is deleted, and the next start makes its group again.
        """
        shard = data_file("train", number)
        if shard not in figures.files:
            return None
        found = self.area.read(_samples(number))
        if found is not None:
            return found
        entry = stored_files({number: figures})[shard]
        try:
            data = self.store.read_stored(*self.ref, shard, entry)
        except CorruptArtifact:
            # By its size alone it would be taken for whole at every start.
            self.store.drop_stored(*self.ref, shard, entry)
            raise
        return sample_strip(read_images(data))

    def finished(self) -> dict[int, GroupFigures]:
        """Return the figures of the finished groups whose files are all in the store, by number.

        Without the empty prompt's states one group counts as missing: the actor that rebuilds it writes them again.
        """
        whole = self.whole(dict(self.all()))
        if whole and self.area.load(EMPTY, parse_states) is None:
            whole.pop(max(whole))
        return whole

    def whole(self, found: dict[int, GroupFigures]) -> dict[int, GroupFigures]:
        """Return those groups whose files are all in the store, by one listing; the others' figures are deleted."""
        lost = set(self.store.lost_files(*self.ref, stored_files(found)))
        whole = {number: figures for number, figures in found.items() if lost.isdisjoint(figures.files)}
        for number in set(found) - set(whole):
            # Another worker may write other bytes than the first one did, and its figures must not be kept out.
            self.area.delete(self._name(number))
        return whole

    def verified(self) -> set[int]:
        """Return the numbers of the finished groups."""
        return set(self.finished())

    def write_empty(self, states: dict[str, Tensor]) -> None:
        """Write the empty prompt's text states, which are the same for every actor."""
        self.area.write_once(EMPTY, save(states), parse_states)

    def read_empty(self) -> dict[str, Tensor]:
        """Return the empty prompt's text states; raise CorruptArtifact when they are missing or corrupt."""
        found = self.area.load(EMPTY, parse_states)
        if found is None:
            raise CorruptArtifact(
                "the empty prompt's states are missing or corrupt", field=self.area.place + EMPTY, fix=RERUN
            )
        return found

    def reopen(self, kind: str, artifact_id: str) -> None:
        """Make a published dataset unfinished again, with those of its groups whose files are whole.

        It takes the figures from the dataset itself; without them every group is made again. Without the empty prompt's
        states one is (``finished``).
        """
        try:
            for line in self.store.read_file(kind, artifact_id, FIGURES_FILE).decode().splitlines():
                document = json.loads(line)
                self.write(int(document.pop("group")), GroupFigures.model_validate(document))
        except (CorruptArtifact, ValidationError, ValueError, KeyError, TypeError):
            self.clear()
            self.store.discard(kind, artifact_id)
            return
        with suppress(CorruptArtifact, ArtifactFormatError):
            self.write_empty(parse_states(self.store.read_file(kind, artifact_id, EMPTY_FILE)))
        self.store.withdraw(kind, artifact_id)


def dump_figures(groups: dict[int, GroupFigures]) -> bytes:
    """Return the figures of a dataset's groups as lines of JSON, for the dataset."""
    lines = [json.dumps({"group": number, **groups[number].model_dump(mode="json")}) for number in sorted(groups)]
    return "".join(f"{line}\n" for line in lines).encode()


def stored_files(groups: dict[int, GroupFigures]) -> dict[str, FileEntry]:
    """Return the files of groups as a manifest names them."""
    return {
        name: FileEntry(size=file.size, sha256=file.sha256)
        for figures in groups.values()
        for name, file in figures.files.items()
    }


def parse_states(data: bytes) -> dict[str, Tensor]:
    """Return a prompt's text states; raise ArtifactFormatError for other bytes."""
    try:
        return load(data)
    except (SafetensorError, ValueError) as error:
        raise ArtifactFormatError(f"no text states: {error}", field="generate", fix=RERUN) from error


def _dump(figures: GroupFigures) -> bytes:
    return figures.model_dump_json().encode()


def _samples(number: int) -> str:
    return f"samples/{number:06d}.png"
