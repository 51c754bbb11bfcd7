"""``python -m jobs.evaluate --config FILE``."""

from __future__ import annotations

import typer

from jobs.run.launch import ConfigOption, opened
from jobs.stages import Stages


def main(config: ConfigOption) -> None:
    """Evaluate a run's models; earlier stages that are not finished run first."""
    with opened(config) as context:
        stages = Stages(context)
        dataset = stages.dataset()
        experts = stages.experts(dataset)
        stages.report(dataset, experts, stages.merges(dataset, experts))


if __name__ == "__main__":
    typer.run(main)
