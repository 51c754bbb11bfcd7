"""``python -m jobs.release --config FILE``."""

from __future__ import annotations

import typer

from jobs.run.launch import ConfigOption, opened
from jobs.stages import Stages
from safety.evaluation.plan import MERGED


def main(config: ConfigOption) -> None:
    """Publish a run's merged model; earlier stages that are not finished run first."""
    with opened(config) as context:
        stages = Stages(context)
        dataset = stages.dataset()
        experts = stages.experts(dataset)
        merges = stages.merges(dataset, experts)
        stages.release(merges[MERGED], stages.report(dataset, experts, merges))


if __name__ == "__main__":
    typer.run(main)
