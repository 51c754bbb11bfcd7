"""``python -m jobs.generate --config FILE``."""

from __future__ import annotations

import typer

from jobs.run.launch import ConfigOption, opened
from jobs.stages import Stages


def main(config: ConfigOption) -> None:
    """Make a run's preference dataset."""
    with opened(config) as context:
        Stages(context).dataset()


if __name__ == "__main__":
    typer.run(main)
