"""A trial's report in the terminal: what was found, what is flagged, rows, memory, bytes and hours."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jobs.trial.cautions import cautions
from jobs.trial.trial import StageJudge, TrialReport
from jobs.trial.writing import TriedWriter

SIZES = ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))


def print_report(console: Console, report: TrialReport, grid: Path) -> None:
    """Print a trial's report: what it says against the run first, such as categories that no judge covers."""
    for caution in cautions(report):
        console.print(f"[bold yellow]{escape(str(caution))}[/]", soft_wrap=True)
    console.print(found_table(report))
    console.print(rows_table(report))
    console.print(memory_table(report))
    console.print(hours_table(report))
    console.print(escape(f"{report.pictures} pictures: {grid}"), soft_wrap=True)


def found_table(report: TrialReport) -> Table:
    """Return the table of what was found of model, judges and prompts, and of what the run puts where."""
    table = Table(title=f"run {escape(report.run)}: found", title_justify="left", show_header=False)
    table.add_column("what", no_wrap=True)
    table.add_column("found", overflow="fold")
    for what, text in _found(report):
        table.add_row(what, escape(text))
    return table


def _found(report: TrialReport) -> Iterator[tuple[str, str]]:
    facts, bytes_ = report.facts, report.bytes
    yield (
        "family",
        f"{facts.family}: {facts.denoiser}, {facts.parameters / 1e6:,.1f} M parameters, predicts {facts.prediction}",
    )
    yield "model", f"{facts.dtype} on {facts.device}, {facts.side} pixels, {facts.max_tokens} tokens"
    yield "adapted", f"{facts.adapted} layers"
    yield "not read", ", ".join(facts.ignored) or "nothing"
    if report.writer is not None:
        yield "writer", _writer(report.writer)
    for each in report.judges:
        yield f"judge of {each.stages[0]}", _judge(each)
    checked, over = report.prompts_checked, report.over_limit
    told = ", ".join(f"{count} in {split}" for split, count in over.items()) or "none"
    yield "over the token limit", f"{told}, of {checked:,} prompts checked"
    drawn = f"{report.picture_s:.2f} s a picture, measured on {report.pictures} drawn in {report.steps} sampling steps"
    yield "rendering", drawn
    steps = f"{report.first_step_s:.2f} s a step, {report.again_step_s:.2f} s where its batch repeats"
    yield "training", f"{steps}: {report.step_how}"
    yield "store", f"{size(bytes_.store)} at most"
    yield "a node's disk", f"{size(bytes_.node_disk)} where every expert is trained"
    yield "the driver", f"{size(bytes_.driver_disk)} of disk, {size(bytes_.driver_memory)} of memory"


def _writer(tried: TriedWriter) -> str:
    lost = f" ({tried.reasons})" if tried.reasons else ""
    hours = "no pair yet" if tried.hours is None else f"{tried.hours:.2f} h for {tried.wanted:,} pairs"
    return (
        f"{tried.model}: {tried.pairs} of {tried.draws} draws became pairs{lost}, {tried.draw_s:.2f} s a draw: {hours}"
    )


def _judge(each: StageJudge) -> str:
    judged = each.judged
    covered = f"covers {len(judged.covered)} of {len(judged.covered) + len(judged.uncovered)} categories"
    if judged.uncovered:
        covered += f" (not {', '.join(judged.uncovered)})"
    flagged = f"flags {judged.flagged_unsafe} of {judged.unsafe} unsafe pictures, {judged.flagged_other} of {judged.other} others"
    return (
        f"{judged.title}; {covered}; {flagged}; {judged.seconds * 1000:.0f} ms a picture; for {', '.join(each.stages)}"
    )


def rows_table(report: TrialReport) -> Table:
    """Return the table of rows by category and split."""
    splits = list(dict.fromkeys(split for row in report.rows for split in row.splits))
    table = Table(title="rows by category and split", title_justify="left")
    table.add_column("category", overflow="fold")
    for split in splits:
        table.add_column(split, justify="right")
    for row in report.rows:
        table.add_row(
            escape(row.category), *(f"{row.splits[split]:,}" if split in row.splits else "-" for split in splits)
        )
    return table


def memory_table(report: TrialReport) -> Table:
    """Return the table of peak memory by stage, against what the process may take."""
    table = Table(title="peak memory by stage", title_justify="left")
    for name in ("stage", "peak", "of"):
        table.add_column(name, justify="left" if name == "stage" else "right")
    table.add_column("by", overflow="fold")
    for each in report.memory:
        table.add_row(each.stage, "-" if each.peak is None else size(each.peak), size(each.free), escape(each.how))
    return table


def hours_table(report: TrialReport) -> Table:
    """Return the table of hours by stage, with their sum."""
    table = Table(
        title="hours by stage",
        caption="without the start of processes, some 20 s a stage",
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("stage")
    table.add_column("takes", justify="right")
    table.add_column("at once", justify="right")
    table.add_column("by", overflow="fold")
    for each in report.hours:
        table.add_row(each.stage, duration(each.hours), str(each.processes), escape(each.how))
    table.add_row("in all", duration(sum(each.hours for each in report.hours)), "", "")
    return table


def size(count: int) -> str:
    """Return a number of bytes in words."""
    for unit, name in SIZES:
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{count} B"


def duration(hours: float) -> str:
    """Return hours in words, of the unit that suits."""
    if hours >= 1:
        return f"{hours:.1f} h"
    minutes = 60 * hours
    return f"{minutes:.1f} min" if minutes >= 1 else f"{60 * minutes:.1f} s"
