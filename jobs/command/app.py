"""``safetydpo NAME --config FILE``: the jobs as subcommands of one program, the same as ``python -m jobs.NAME``.

Each imports its job only when it runs, since Ray and torch take seconds and help should not.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from jobs.convert.command import MemoryOption, ModelOption
from jobs.convert.command import OutputOption as ConvertedOption
from jobs.convert.command import main as convert_model
from jobs.export.form import FormOption, OutputOption, ReleaseOption

ConfigOption = Annotated[Path, typer.Option("--config", help="a run's YAML, such as one of jobs/configs")]
CardsOption = Annotated[bool, typer.Option("--cards", help="list what fits on which card for the run's model")]
QuickOption = Annotated[bool, typer.Option("--quick", help="check alone: draw no pictures, estimate nothing")]
PilotOption = Annotated[
    bool, typer.Option("--pilot", help="take 20 pairs per category through every stage, as a run of its own")
]

app = typer.Typer(
    name="safetydpo",
    help="Align a text-to-image model away from harmful images, from its file to a served model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def find_modules_here() -> None:
    """Find a run's own judges and writers in the working folder, as ``python -m`` does and an installed program does not."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)


@app.command()
def preflight(config: ConfigOption, cards: CardsOption = False, quick: QuickOption = False) -> None:
    """Check whether a run can start, and try it out: eight pictures, a step, hours and bytes."""
    from jobs.preflight import main  # slow to import

    main(config, cards, quick)


@app.command()
def convert(model: ModelOption, output: ConvertedOption, memory_gib: MemoryOption = None) -> None:
    """Turn a pickled model that you trust into safetensors."""
    convert_model(model, output, memory_gib)


@app.command()
def run(config: ConfigOption, pilot: PilotOption = False) -> None:
    """Run the whole pipeline; what exists and verifies is skipped."""
    from jobs.pipeline import main  # slow to import

    main(config, pilot)


@app.command()
def generate(config: ConfigOption) -> None:
    """Make a run's preference dataset."""
    _run_up_to("generate", config)


@app.command()
def train(config: ConfigOption) -> None:
    """Train a run's experts; its dataset is made first when it is not there."""
    _run_up_to("train", config)


@app.command()
def merge(config: ConfigOption) -> None:
    """Merge a run's experts and consolidate the merge; earlier stages that are not finished run first."""
    _run_up_to("merge", config)


@app.command()
def evaluate(config: ConfigOption) -> None:
    """Evaluate a run's models; earlier stages that are not finished run first."""
    _run_up_to("evaluate", config)


@app.command()
def release(config: ConfigOption) -> None:
    """Publish a run's merged model; earlier stages that are not finished run first."""
    _run_up_to("release", config)


@app.command()
def serve(config: ConfigOption) -> None:
    """Serve the release that the run's pointer names, until Ctrl-C."""
    from serve.__main__ import main  # slow to import

    main(config)


@app.command()
def export(config: ConfigOption, form: FormOption, output: OutputOption, release: ReleaseOption = None) -> None:
    """Write a release in another form: the LoRA for other programs, or its base model with the LoRA in its weights."""
    from jobs.export.command import main  # slow to import

    main(config, form, output, release)


def _run_up_to(job: str, config: Path) -> None:
    """Run a run's stages up to a job's own."""
    from jobs.stages import command  # slow to import

    command(job, "")(config)
