"""``python -m jobs.merge --config FILE``."""

from __future__ import annotations

import typer

from jobs.run.launch import ConfigOption, opened
from jobs.stages import Stages


def main(config: ConfigOption) -> None:
    """Merge a run's experts, and consolidate the merge; earlier stages that are not finished run first."""
    with opened(config) as context:
        stages = Stages(context)
        dataset = stages.dataset()
        stages.merges(dataset, stages.experts(dataset))


if __name__ == "__main__":
    typer.run(main)
