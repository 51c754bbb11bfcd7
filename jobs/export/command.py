"""The command of an export, with the exit codes and the last line of every job."""

from __future__ import annotations

from rich.markup import escape

from jobs.export.form import FormOption, OutputOption, ReleaseOption
from jobs.export.stage import run
from jobs.run.config import load_run
from jobs.run.launch import ConfigOption, make_console, reporting_errors


def main(config: ConfigOption, form: FormOption, output: OutputOption, release: ReleaseOption = None) -> None:
    """Write a release in another form: the LoRA for other programs, or its base model with the LoRA in its weights."""
    console = make_console()
    with reporting_errors(console):
        for line in run(load_run(config), form, output, release):
            console.print(escape(line), soft_wrap=True)
