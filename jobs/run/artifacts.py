"""Artifacts as stages name, find, publish and fetch them, and the context that every stage is given."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.console import Console
from rich.markup import escape

from cluster.errors import CorruptArtifact
from cluster.hashing import artifact_id
from cluster.store.artifacts import ALL_FILES, ArtifactStore
from cluster.store.checksummed import read_checksummed
from cluster.store.local_copy import VerifiedFiles, fetching
from cluster.store.manifest import FileEntry
from cluster.store.suspects import suspects_prefix

if TYPE_CHECKING:  # Actors and workers import this module, and need no run's whole config.
    from jobs.run.config import RunConfig
    from safety.families.identity import ModelIdentity

EXPERTS_FOLDER, SEARCH_FOLDER = "tensorboard/experts", "logs"
"""Folders of the experts' curves and of the merge search's logs in a run's output folder."""


class ArtifactRef(NamedTuple):
    """The name of a finished artifact in the store."""

    kind: str
    id: str


@dataclass(frozen=True)
class StageContext:
    """A run's configuration, its store, its local working folder and the terminal."""

    run: RunConfig
    store: ArtifactStore
    work: Path
    console: Console

    @cached_property
    def model(self) -> ModelIdentity:
        """The base model's content, as it stands in the settings that artifacts are named by; read once a process."""
        from jobs.run.base_model import identify  # late: actors import this module, and do without its libraries

        return identify(self.run)

    def folder(self, ref: ArtifactRef, *files: str) -> Path:
        """Return a local folder with an artifact's files, or with those of some patterns, verified; fetched when missing."""
        return fetch_artifact(self.store, self.work, ref, files or ALL_FILES)


def fetch_artifact(store: ArtifactStore, work: Path, ref: ArtifactRef, files: Iterable[str] = ALL_FILES) -> Path:
    """Return a local folder below ``work`` with an artifact's files, each verified in full once on this machine.

    Args:
        store: Where it is published.
        work: The folder of this machine's copies.
        ref: The artifact.
        files: Patterns of the files that are needed.

    Raises:
        CorruptArtifact: A file is missing or corrupt; the next start verifies it, and rebuilds what is corrupt.
    """
    folder = work / ref.kind / ref.id
    with fetching(folder):
        verified = VerifiedFiles(folder)
        try:
            store.fetch(ref.kind, ref.id, folder, files=files, verified=verified)
        finally:
            if folder.is_dir():
                verified.save()
    return folder


def put_artifact(
    store: ArtifactStore,
    ref: ArtifactRef,
    folder: Path,
    *,
    config: Mapping[str, Any],
    seed: int,
    parents: Sequence[ArtifactRef],
    stored: Mapping[str, FileEntry] | None = None,
) -> None:
    """Put a folder, and files that are stored already, into the store as ``ref``; raises as ``ArtifactStore.put`` does."""
    named = [f"{parent.kind}/{parent.id}" for parent in parents]
    store.put(ref.kind, ref.id, folder, config=config, seed=seed, parents=named, stored=stored)


def artifact_ref(
    context: StageContext, kind: str, settings: Mapping[str, Any], parents: Sequence[ArtifactRef] = ()
) -> ArtifactRef:
    """Return the name of the artifact a stage makes: a hash of its settings, its parents and the run's seed."""
    return ArtifactRef(kind, artifact_id(kind, dict(settings), [parent.id for parent in parents], context.run.run.seed))


def finished(
    context: StageContext,
    ref: ArtifactRef,
    discard: Callable[[str, str], None] | None = None,
    *,
    in_full: bool = False,
) -> bool:
    """Return whether the artifact is published with all its files; a corrupt one is reported and discarded, to be rebuilt.

    Its manifest is read, and the store is asked for the sizes of its files. Their content is verified where it is used,
    and here only when that has failed before.

    Args:
        context: The run.
        ref: The artifact.
        discard: Deletes what keeps it from being made again; None: all of it.
        in_full: Read all of its files, for an artifact whose users may not leave a note on what they found corrupt.
    """
    try:
        manifest = context.store.manifest(ref.kind, ref.id)
        if manifest is None:
            return False
        _verify_suspects(context.store, ref)
        lost = context.store.lost_files(ref.kind, ref.id, manifest.files)
        if lost:
            raise CorruptArtifact(
                f"the file is missing or of another size{f', and {len(lost) - 1} more' if len(lost) > 1 else ''}",
                field=f"{ref.kind}/{ref.id}/{lost[0]}",
                fix="run the stage that makes it again",
            )
        if in_full:
            context.store.verify(ref.kind, ref.id)
    except CorruptArtifact as error:
        context.console.print(f"[yellow]{ref.kind} {ref.id} is corrupt; rebuilding it:[/] {escape(str(error))}")
        (discard or context.store.discard)(ref.kind, ref.id)
        return False
    return True


def _verify_suspects(store: ArtifactStore, ref: ArtifactRef) -> None:
    """Read the files in full that did not verify where they were used; raise CorruptArtifact when one is corrupt."""
    corrupt: CorruptArtifact | None = None
    for key in store.keys(suspects_prefix(ref.kind, ref.id)):
        try:
            name = (read_checksummed(store, key) or b"").decode()
            store.verify_file(ref.kind, ref.id, name)
        except CorruptArtifact as error:
            corrupt = error
        store.delete(key)
    if corrupt is not None:
        raise corrupt


def publish(
    context: StageContext,
    ref: ArtifactRef,
    settings: Mapping[str, Any],
    parents: Sequence[ArtifactRef],
    fill: Callable[[Path], None],
    stored: Mapping[str, FileEntry] | None = None,
) -> None:
    """Fill a temporary folder and put it into the store as ``ref``, with files that workers have stored already."""
    with TemporaryDirectory(prefix=f"safetydpo-{ref.kind}-") as scratch:
        folder = Path(scratch)
        fill(folder)
        put_artifact(
            context.store, ref, folder, config=settings, seed=context.run.run.seed, parents=parents, stored=stored
        )
