"""The finished groups of a dataset's rows, and the empty prompt's text states, in the store's work area."""

from __future__ import annotations

from safetensors.torch import load, save
from torch import Tensor

from cluster.errors import CorruptArtifact
from cluster.store.artifacts import ArtifactStore
from jobs.run.artifacts import ArtifactRef
from jobs.run.work_area import RERUN, NumberedGroups
from safety.dataset.record import Record, dump_group, load_group

EMPTY = "empty.safetensors"


class GroupStore(NumberedGroups[list[Record]]):
    """The groups of one dataset that are finished."""

    def __init__(self, store: ArtifactStore, ref: ArtifactRef) -> None:
        super().__init__(store, ref, dump_group, load_group)

    def verified(self) -> set[int]:
        """Return the numbers of the finished groups that are not corrupt.

        Without the empty prompt's states one group counts as missing: the actor that rebuilds it writes them again.
        """
        found = super().verified()
        if self.area.read(EMPTY) is None:
            found.discard(max(found, default=-1))
        return found

    def write_empty(self, states: dict[str, Tensor]) -> None:
        """Write the empty prompt's text states, which are the same for every actor."""
        self.area.write(EMPTY, save(states))

    def read_empty(self) -> dict[str, Tensor]:
        """Return the empty prompt's text states; raise CorruptArtifact when they are missing or corrupt."""
        data = self.area.read(EMPTY)
        if data is None:
            raise CorruptArtifact(
                "the empty prompt's states are missing or corrupt", field=self.area.place + EMPTY, fix=RERUN
            )
        return load(data)
