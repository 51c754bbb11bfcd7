"""``python -m jobs.convert --model FOLDER_OR_FILE --output FOLDER``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from jobs.convert.command import convert
from safety.errors import SafetyError

EXIT_USER_ERROR = 2
"""As of every job; theirs would bring Ray with it."""


def main(
    model: Annotated[Path, typer.Option(help="a diffusers folder, a network's folder, or a file such as a .ckpt")],
    output: Annotated[Path, typer.Option(help="the folder that is written; it must not be there, or be empty")],
    memory_gib: Annotated[
        float | None, typer.Option(help="the most memory of the reading process; none: thrice the largest file, and 2")
    ] = None,
) -> None:
    """Turn a pickled model that you trust into safetensors, without running what its files may hold."""
    console = Console()
    try:
        path = convert(model, output, memory_gib)
    except SafetyError as error:
        console.print(f"[bold red]{escape(' '.join(str(error).split()))}[/]", soft_wrap=True)
        raise typer.Exit(EXIT_USER_ERROR) from None
    console.print(f"written: {escape(str(path))}; name it as model.path", soft_wrap=True)


if __name__ == "__main__":
    typer.run(main)
