"""The command ``python -m jobs.convert``, which needs no run and no Ray."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from cluster.errors import EXIT_USER_ERROR

ModelOption = Annotated[Path, typer.Option(help="a diffusers folder, a network's folder, or a file such as a .ckpt")]
OutputOption = Annotated[Path, typer.Option(help="the folder that is written; it must not be there, or be empty")]
MemoryOption = Annotated[
    float | None, typer.Option(help="the most memory of the reading process; none: thrice the largest file, and 2")
]


def main(model: ModelOption, output: OutputOption, memory_gib: MemoryOption = None) -> None:
    """Turn a pickled model that you trust into safetensors, without running what its files may hold."""
    # Slow to import, and help should not wait for it.
    from jobs.convert.conversion import convert
    from safety.errors import SafetyError

    console = Console()
    try:
        path = convert(model, output, memory_gib)
    except SafetyError as error:
        console.print(f"[bold red]{escape(' '.join(str(error).split()))}[/]", soft_wrap=True)
        raise typer.Exit(EXIT_USER_ERROR) from None
    console.print(f"written: {escape(str(path))}; name it as model.path", soft_wrap=True)
