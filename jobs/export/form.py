"""The forms in which a release is exported. Importing it loads nothing of weight, so that a command's help is quick."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Form(StrEnum):
    """A form of a release."""

    DIFFUSERS = "diffusers"
    """The LoRA as it was released, for ``pipe.load_lora_weights``: a folder."""
    KOHYA = "kohya"
    """The LoRA for ComfyUI and others: a file."""
    FUSED_FOLDER = "fused-folder"
    """The base model with the LoRA in its weights: a folder in diffusers' format."""
    FUSED_FILE = "fused-file"
    """The same as one file in original layout; of Stable Diffusion 1.x, 2.x and XL."""

    @property
    def is_file(self) -> bool:
        """Return whether the form is one file, and not a folder."""
        return self in (Form.KOHYA, Form.FUSED_FILE)


FormOption = Annotated[Form, typer.Option("--form", help="the LoRA, or the base model with it in its weights")]
OutputOption = Annotated[
    Path, typer.Option("--output", help="a file that is not there yet, or a folder that is empty or not there")
]
ReleaseOption = Annotated[
    str | None,
    typer.Option(
        "--release",
        help="a release's id or its folder, such as out/demo/release; by default what the run's pointer names",
    ),
]
