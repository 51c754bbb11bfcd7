"""The stages of a run: each is made once, skipped when its artifact exists and verifies, and timed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from cluster.canonical import ID_DIGITS, config_hash
from cluster.progress import timed
from jobs import evaluate, generate, merge, release, train
from jobs.stage import ArtifactRef, StageContext
from safety.evaluation.plan import MERGED

SECONDS_KEYS = "work/seconds"


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

    def _keep_seconds(self, name: str, made: Iterable[ArtifactRef]) -> None:
        """Keep a stage's time beside what it made: of a stage that this or another run skips, it is still told."""
        key = f"{SECONDS_KEYS}/{name}-{config_hash([ref.id for ref in made])[:ID_DIGITS]}"
        kept = self.context.store.read(key)
        if kept is not None:
            self.seconds[name] = max(self.seconds[name], float(json.loads(kept)))
        self.context.store.write(key, json.dumps(self.seconds[name]).encode())

    def dataset(self) -> ArtifactRef:
        """Return the dataset."""
        with self.timed("generate"):
            dataset = generate.run(self.context)
        self._keep_seconds("generate", [dataset])
        return dataset

    def experts(self, dataset: ArtifactRef) -> dict[str, ArtifactRef]:
        """Return the experts by name."""
        with self.timed("train"):
            experts = train.run(self.context, dataset)
        self._keep_seconds("train", experts.values())
        return experts

    def merges(self, dataset: ArtifactRef, experts: dict[str, ArtifactRef]) -> dict[str, ArtifactRef]:
        """Return the merges by name; "merged" is the searched Co-Merge, the one that is released."""
        with self.timed("merge"):
            refs = merge.run(self.context, dataset, experts)
        self._keep_seconds("merge", refs.values())
        others = {name: ref for name, ref in refs.items() if name != merge.SEARCHED}
        return {MERGED: refs[merge.SEARCHED], **others}

    def report(
        self, dataset: ArtifactRef, experts: dict[str, ArtifactRef], merges: dict[str, ArtifactRef]
    ) -> ArtifactRef:
        """Return the report, which is delivered to the run's output folder too."""
        with self.timed("evaluate"):
            report = evaluate.run(self.context, dataset, experts, merges, self.seconds)
        self._keep_seconds("evaluate", [report])
        return report

    def release(self, merged: ArtifactRef, report: ArtifactRef) -> ArtifactRef:
        """Return the published release; the run's pointer names it."""
        with self.timed("release"):
            published = release.run(self.context, merged, report)
        self._keep_seconds("release", [published])
        return published
