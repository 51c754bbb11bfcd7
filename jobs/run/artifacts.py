"""Artifacts as stages name, find, publish and fetch them, and the context that every stage is given."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.console import Console
from rich.markup import escape

from cluster.errors import CorruptArtifact
from cluster.hashing import artifact_id
from cluster.store.artifacts import ArtifactStore

if TYPE_CHECKING:  # Actors and workers import this module, and need no run's whole config.
    from jobs.run.config import RunConfig

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

    def folder(self, ref: ArtifactRef) -> Path:
        """Return a local, verified copy of an artifact, fetched when it is not there."""
        return fetch_artifact(self.store, self.work, ref)


def fetch_artifact(store: ArtifactStore, work: Path, ref: ArtifactRef) -> Path:
    """Return a verified copy of an artifact below the working folder ``work``, fetched when it is not there."""
    return store.fetch(ref.kind, ref.id, work / ref.kind / ref.id)


def put_artifact(
    store: ArtifactStore,
    ref: ArtifactRef,
    folder: Path,
    *,
    config: Mapping[str, Any],
    seed: int,
    parents: Sequence[ArtifactRef],
) -> None:
    """Put a folder into the store as ``ref``; raises as ``ArtifactStore.put`` does."""
    named = [f"{parent.kind}/{parent.id}" for parent in parents]
    store.put(ref.kind, ref.id, folder, config=config, seed=seed, parents=named)


def artifact_ref(
    context: StageContext, kind: str, settings: Mapping[str, Any], parents: Sequence[ArtifactRef] = ()
) -> ArtifactRef:
    """Return the name of the artifact a stage makes: a hash of its settings, its parents and the run's seed."""
    return ArtifactRef(kind, artifact_id(kind, dict(settings), [parent.id for parent in parents], context.run.run.seed))


def finished(context: StageContext, ref: ArtifactRef) -> bool:
    """Return whether the artifact exists and verifies; a corrupt one is reported and discarded, so that it is rebuilt."""
    try:
        if context.store.manifest(ref.kind, ref.id) is None:
            return False
        context.store.verify(ref.kind, ref.id)
    except CorruptArtifact as error:
        context.console.print(f"[yellow]{ref.kind} {ref.id} is corrupt; rebuilding it:[/] {escape(str(error))}")
        context.store.discard(ref.kind, ref.id)
        return False
    return True


def publish(
    context: StageContext,
    ref: ArtifactRef,
    settings: Mapping[str, Any],
    parents: Sequence[ArtifactRef],
    fill: Callable[[Path], None],
) -> None:
    """Fill a fresh local folder, without what an earlier try left, and put it into the store as ``ref``."""
    folder = context.work / "staging" / ref.kind / ref.id
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    fill(folder)
    put_artifact(context.store, ref, folder, config=settings, seed=context.run.run.seed, parents=parents)
