"""``python -m jobs.train --config FILE``."""

from __future__ import annotations

import typer

from jobs.run.launch import ConfigOption, opened
from jobs.stages import Stages


def main(config: ConfigOption) -> None:
    """Train a run's experts; its dataset is made first when it is not there."""
    with opened(config) as context:
        stages = Stages(context)
        stages.experts(stages.dataset())


if __name__ == "__main__":
    typer.run(main)
