"""The stages of a run: each is made once, skipped when its artifact exists and verifies, and timed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

from cluster.progress import timed
from jobs import evaluate, generate, merge, release, train
from jobs.stage import ArtifactRef, StageContext
from safety.evaluation.plan import MERGED

SECONDS_FILE = "seconds.json"


class Stages:
    """A run's stages, each given what it stands on."""

    def __init__(self, context: StageContext) -> None:
        """Take up the seconds that finished stages took when they were made."""
        self.context = context
        self._file = context.work / SECONDS_FILE
        self.seconds: dict[str, float] = json.loads(self._file.read_text()) if self._file.is_file() else {}

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Announce a stage and note its time; of a stage that is now skipped, the time of its making stays."""
        spent: dict[str, float] = {}
        with timed(self.context.console, name, spent):
            yield
        self.seconds[name] = max(spent[name], self.seconds.get(name, 0.0))
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self._file.write_text(json.dumps(self.seconds), encoding="utf-8")

    def dataset(self) -> ArtifactRef:
        """Return the dataset."""
        with self.timed("generate"):
            return generate.run(self.context)

    def experts(self, dataset: ArtifactRef) -> dict[str, ArtifactRef]:
        """Return the experts by name."""
        with self.timed("train"):
            return train.run(self.context, dataset)

    def merges(self, dataset: ArtifactRef, experts: dict[str, ArtifactRef]) -> dict[str, ArtifactRef]:
        """Return the merges by name; "merged" is the searched Co-Merge, the one that is released."""
        with self.timed("merge"):
            refs = merge.run(self.context, dataset, experts)
        others = {name: ref for name, ref in refs.items() if name != merge.SEARCHED}
        return {MERGED: refs[merge.SEARCHED], **others}

    def report(
        self, dataset: ArtifactRef, experts: dict[str, ArtifactRef], merges: dict[str, ArtifactRef]
    ) -> ArtifactRef:
        """Return the report, which is delivered to the run's output folder too."""
        with self.timed("evaluate"):
            return evaluate.run(self.context, dataset, experts, merges, self.seconds)

    def release(self, merged: ArtifactRef, report: ArtifactRef) -> ArtifactRef:
        """Return the published release; the run's pointer names it."""
        with self.timed("release"):
            return release.run(self.context, merged, report)
