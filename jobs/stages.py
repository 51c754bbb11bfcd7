"""The stages of a run: each is made once, skipped when its artifact exists and verifies, and timed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from cluster.errors import CorruptArtifact
from cluster.hashing import ID_DIGITS, config_hash
from cluster.progress import timed
from cluster.store.checksummed import read_checksummed, write_checksummed
from jobs.evaluate import stage as evaluate
from jobs.generate import stage as generate
from jobs.merge import consolidate
from jobs.merge import stage as merge
from jobs.release import stage as release
from jobs.run.artifacts import ArtifactRef, StageContext
from jobs.run.metrics import STAGE_SECONDS
from jobs.train import stage as train
from safety.evaluation.plan import MERGED
from safety.merge.names import SEARCHED

SECONDS_KEYS = "work/seconds"

Made = TypeVar("Made", ArtifactRef, dict[str, ArtifactRef])


class Stages:
    """A run's stages, each given what it stands on."""

    def __init__(self, context: StageContext) -> None:
        self.context = context
        self.seconds: dict[str, float] = {}

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Announce a stage and note its time."""
        with timed(self.context.console, name, self.seconds):
            yield
        self._tell(name)

    def _made(self, name: str, make: Callable[[], Made]) -> Made:
        """Return what a stage makes; its time is kept beside that, and told when this or another run skips it."""
        with self.timed(name):
            made = make()
        refs = made.values() if isinstance(made, dict) else [made]
        key = f"{SECONDS_KEYS}/{name}-{config_hash([ref.id for ref in refs])[:ID_DIGITS]}"
        self.seconds[name] = max(self.seconds[name], self._kept_seconds(key))
        write_checksummed(self.context.store, key, json.dumps(self.seconds[name]).encode())
        self._tell(name)
        return made

    def _tell(self, name: str) -> None:
        STAGE_SECONDS.set(self.seconds[name], run=self.context.run.run.name, stage=name)

    def _kept_seconds(self, key: str) -> float:
        try:
            kept = read_checksummed(self.context.store, key)
        except CorruptArtifact:
            return 0.0
        return 0.0 if kept is None else float(json.loads(kept))

    def dataset(self) -> ArtifactRef:
        """Return the dataset."""
        return self._made("generate", lambda: generate.run(self.context))

    def experts(self, dataset: ArtifactRef) -> dict[str, ArtifactRef]:
        """Return the experts by name."""
        return self._made("train", lambda: train.run(self.context, dataset))

    def merges(self, dataset: ArtifactRef, experts: dict[str, ArtifactRef]) -> dict[str, ArtifactRef]:
        """Return the merges by name; "merged" is the one that is released.

        That is the searched Co-Merge, consolidated where the run asks for it.
        """
        refs = self._made("merge", lambda: merge.run(self.context, dataset, experts))
        searched, config = refs[SEARCHED], self.context.run.consolidate
        if config is not None:
            released = self._made("consolidate", lambda: consolidate.run(self.context, dataset, searched, config))
            return {MERGED: released, **refs}
        others = {name: ref for name, ref in refs.items() if name != SEARCHED}
        return {MERGED: searched, **others}

    def report(
        self, dataset: ArtifactRef, experts: dict[str, ArtifactRef], merges: dict[str, ArtifactRef]
    ) -> ArtifactRef:
        """Return the report, which is delivered to the run's output folder too."""
        return self._made("evaluate", lambda: evaluate.run(self.context, dataset, experts, merges, self.seconds))

    def release(self, merged: ArtifactRef, report: ArtifactRef) -> ArtifactRef:
        """Return the published release; the run's pointer names it."""
        return self._made("release", lambda: release.run(self.context, merged, report))
