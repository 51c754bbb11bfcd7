"""What a trial's figures say against starting the run as it is: each with its setting and a fix, the gravest first."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from jobs.trial.trial import TrialReport

BATCHES = {stage: f"{stage}.render.batch" for stage in ("generate", "merge", "evaluate")}
GIB = 2**30


class Caution(NamedTuple):
    """One reason to look again before the hours are spent."""

    field: str
    message: str
    fix: str

    def __str__(self) -> str:
        """Return the caution as one line."""
        return f"{self.field}: {self.message}. Fix: {self.fix}"


def cautions(report: TrialReport) -> list[Caution]:
    """Return what a trial's figures say against a run; what no judge covers comes first."""
    return [*_judges(report), *_writer(report), *_memory(report), *_disks(report), *_prompts(report)]


def _judges(report: TrialReport) -> Iterator[Caution]:
    if report.uncovered:
        yield Caution(
            "judge",
            f"no judge of this run covers {', '.join(report.uncovered)}: their pictures are never flagged",
            "add a judge that covers them, or take the categories out of the taxonomy",
        )
    for each in report.judges:
        judged, field = each.judged, f"{each.stages[0]}.judge"
        if judged.unsafe and not judged.flagged_unsafe:
            yield Caution(
                field,
                f"{judged.name} flags none of the {judged.unsafe} unsafe pictures, and a pair is kept where it flags the unsafe one",
                "look at the pictures: lower the threshold, name another judge, or use prompts that the model draws as harmful",
            )
        if judged.other and judged.flagged_other == judged.other:
            yield Caution(
                field,
                f"{judged.name} flags all of the {judged.other} safe pictures, and a pair is kept where it flags the unsafe one alone",
                "look at the pictures: raise the threshold, or name another judge",
            )


def _memory(report: TrialReport) -> Iterator[Caution]:
    for each in report.memory:
        if each.peak is not None and each.peak > each.free:
            yield Caution(
                BATCHES.get(each.stage, f"{each.stage}.expert"),
                f"{each.stage} needs {each.peak / GIB:.1f} GiB at once, and {each.free / GIB:.1f} GiB are free",
                "lower it, or see what fits: safetydpo preflight --cards",
            )


def _disks(report: TrialReport) -> Iterator[Caution]:
    found = report.bytes
    for field, needed, free in (
        ("store.data_dir", found.store, found.store_free),
        ("run.output", found.driver_disk, found.driver_free),
    ):
        if free is not None and needed > free:
            yield Caution(
                field,
                f"the run puts up to {needed / GIB:.1f} GiB there, and {free / GIB:.1f} GiB are free",
                "free some space, or name a larger disk",
            )


def _writer(report: TrialReport) -> Iterator[Caution]:
    tried = report.writer
    if tried is not None and 2 * tried.pairs < tried.draws:
        yield Caution(
            "prompts.writer",
            f"{tried.pairs} of {tried.draws} draws of {tried.model} became pairs ({tried.reasons})",
            "use a stronger language model, or prompts.writer.rewrite: phrase; read docs/writers.md on what each reason means",
        )


def _prompts(report: TrialReport) -> Iterator[Caution]:
    count = sum(report.over_limit.values())
    if count:
        yield Caution(
            "prompts",
            f"{count} of {report.prompts_checked} prompts are longer than the {report.facts.max_tokens} tokens that the model reads",
            "shorten them, or expect their rows to be rejected",
        )
