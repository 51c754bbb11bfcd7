"""Where a run can be watched: Ray's dashboard, the job's own page, TensorBoard, the artifacts."""

from __future__ import annotations

from typing import NamedTuple

import ray

from cluster.submission import submission
from jobs.run.config import RunConfig

EXPERTS_FOLDER, SEARCH_FOLDER = "tensorboard/experts", "logs"


class Link(NamedTuple):
    """A place to look at, and what is to be seen there."""

    what: str
    where: str


def job_page(dashboard: str) -> str:
    """Return the dashboard's page of the job that this process drives."""
    job = submission()
    return f"{dashboard}/#/jobs/{job.id if job else ray.get_runtime_context().get_job_id()}"


def links(run: RunConfig, dashboard: str | None, artifacts: str) -> list[Link]:
    """Return what a job says at its start.

    Args:
        run: The run; its output folder is on the machine of the process that writes there.
        dashboard: The URL of Ray's dashboard, if there is one.
        artifacts: Where the store is.
    """
    output = run.run.output.resolve()
    found = [Link("Ray dashboard", dashboard), Link("this job", job_page(dashboard))] if dashboard else []
    return [
        *found,
        Link("expert curves", f"tensorboard --logdir {output / EXPERTS_FOLDER}"),
        Link("merge search", f"tensorboard --logdir {output / SEARCH_FOLDER}"),
        Link("artifacts", artifacts),
    ]
