"""The stages of a run: each is made once, skipped when its artifact exists and verifies, and timed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from cluster.canonical import ID_DIGITS, config_hash
from cluster.progress import timed
from jobs import evaluate, generate, merge, release, train
from jobs.stage import ArtifactRef, StageContext
from safety.evaluation.plan import MERGED

SECONDS_KEYS = "work/seconds"

Made = TypeVar("Made", ArtifactRef, dict[str, ArtifactRef])


class Stages:
    """A run's stages, each given what it stands on."""

    def __init__(self, context: StageContext) -> None:
        """Start with no stage done."""
        self.context = context
        self.seconds: dict[str, float] = {}

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Announce a stage and note its time."""
        with timed(self.context.console, name, self.seconds):
            yield

    def _made(self, name: str, make: Callable[[], Made]) -> Made:
        """Return what a stage makes; its time is kept beside that, and told when this or another run skips it."""
        with self.timed(name):
            made = make()
        refs = made.values() if isinstance(made, dict) else [made]
        key = f"{SECONDS_KEYS}/{name}-{config_hash([ref.id for ref in refs])[:ID_DIGITS]}"
        kept = self.context.store.read(key)
        if kept is not None:
            self.seconds[name] = max(self.seconds[name], float(json.loads(kept)))
        self.context.store.write(key, json.dumps(self.seconds[name]).encode())
        return made

    def dataset(self) -> ArtifactRef:
        """Return the dataset."""
        return self._made("generate", lambda: generate.run(self.context))

    def experts(self, dataset: ArtifactRef) -> dict[str, ArtifactRef]:
        """Return the experts by name."""
        return self._made("train", lambda: train.run(self.context, dataset))

    def merges(self, dataset: ArtifactRef, experts: dict[str, ArtifactRef]) -> dict[str, ArtifactRef]:
        """Return the merges by name; "merged" is the searched Co-Merge, the one that is released."""
        refs = self._made("merge", lambda: merge.run(self.context, dataset, experts))
        others = {name: ref for name, ref in refs.items() if name != merge.SEARCHED}
        return {MERGED: refs[merge.SEARCHED], **others}

    def report(
        self, dataset: ArtifactRef, experts: dict[str, ArtifactRef], merges: dict[str, ArtifactRef]
    ) -> ArtifactRef:
        """Return the report, which is delivered to the run's output folder too."""
        return self._made("evaluate", lambda: evaluate.run(self.context, dataset, experts, merges, self.seconds))

    def release(self, merged: ArtifactRef, report: ArtifactRef) -> ArtifactRef:
        """Return the published release; the run's pointer names it."""
        return self._made("release", lambda: release.run(self.context, merged, report))
