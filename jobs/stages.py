"""The stages of a run: each runs once, is skipped when its artifacts exist and verify, and is timed.

``python -m jobs.NAME --config FILE`` is made here for each job: it runs the stages up to the job's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, TypeVar

from pydantic import Field, TypeAdapter

from cluster.hashing import ID_DIGITS, config_hash
from cluster.progress import timed
from jobs.evaluate import stage as evaluate
from jobs.generate import stage as generate
from jobs.merge import consolidate
from jobs.merge import stage as merge
from jobs.release import stage as release
from jobs.run.artifacts import ArtifactRef, StageContext
from jobs.run.launch import ConfigOption, opened
from jobs.run.metrics import STAGE_SECONDS
from jobs.run.needs import require_needs, stages_up_to
from jobs.run.work_area import WorkArea
from jobs.train import stage as train
from safety.evaluation.plan import MERGED
from safety.merge.method import SEARCHED

SECONDS = TypeAdapter(Annotated[float, Field(ge=0, allow_inf_nan=False)])
Made = TypeVar("Made", ArtifactRef, dict[str, ArtifactRef])


class Stages:
    """A run's stages; each takes the artifacts that it is made from."""

    def __init__(self, context: StageContext) -> None:
        self.context = context
        self.seconds: dict[str, float] = {}

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Announce a stage and record its time."""
        with timed(self.context.console, name, self.seconds):
            yield
        self._report(name)

    def _made(self, name: str, make: Callable[[], Made]) -> Made:
        """Return a stage's artifacts; its time is kept in the store, and reported when this or another run skips it."""
        with self.timed(name):
            made = make()
        refs = made.values() if isinstance(made, dict) else [made]
        kept = WorkArea(self.context.store, ArtifactRef("seconds", name))
        key = f"{config_hash([ref.id for ref in refs])[:ID_DIGITS]}.json"
        self.seconds[name] = max(self.seconds[name], kept.load(key, SECONDS.validate_json) or 0.0)
        kept.write(key, SECONDS.dump_json(self.seconds[name]))
        self._report(name)
        return made

    def _report(self, name: str) -> None:
        STAGE_SECONDS.set(self.seconds[name], run=self.context.run.run.name, stage=name)

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
        """Return the published release; the run's pointer names it, and a copy of it is in the run's output folder."""
        return self._made("release", lambda: release.run(self.context, merged, report))

    def served(self, release: ArtifactRef, check: Callable[[], None]) -> None:
        """Check the endpoint that serves the release; its time is kept as a stage's, for runs that need no check any more."""

        def checked() -> ArtifactRef:
            check()
            return release

        self._made("serve", checked)

    def up_to(self, last: str) -> None:
        """Run the stages in their order, up to the one of the job ``last``, after a trial of all that they load."""
        require_needs(self.context.run, stages_up_to(last))
        dataset = self.dataset()
        if last == "generate":
            return
        experts = self.experts(dataset)
        if last == "train":
            return
        merges = self.merges(dataset, experts)
        if last == "merge":
            return
        report = self.report(dataset, experts, merges)
        if last == "release":
            self.release(merges[MERGED], report)


def command(job: str, purpose: str) -> Callable[[ConfigOption], None]:
    """Return the command of a job, with ``purpose`` as its help."""

    def main(config: ConfigOption) -> None:
        with opened(config) as context:
            Stages(context).up_to(job)

    main.__doc__ = purpose
    return main
