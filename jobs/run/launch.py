"""The start and end of every job: opens config, store, cluster and lease in order, and reports an error's first cause."""

from __future__ import annotations

import logging
import os
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Annotated, NamedTuple

import ray
import typer
from rich.console import Console
from rich.markup import escape

from cluster.errors import EXIT_USER_ERROR, ClusterError, unusable_path
from cluster.lease import lease
from cluster.resources import grown_resources
from cluster.session import LOCAL, Session, connect
from cluster.store.artifacts import ArtifactStore
from cluster.submission import submission
from jobs.run.artifacts import EXPERTS_FOLDER, SEARCH_FOLDER, StageContext
from jobs.run.auto_placement import BegunWorkers, chooses_workers, settled, workers_notice
from jobs.run.base_model import require_known_family
from jobs.run.config import RunConfig, load_run
from jobs.run.notices import notices
from jobs.run.ray_data import first_cause
from safety.errors import SafetyError
from serve.admission import MIDDLEWARES

ConfigOption = Annotated[Path, typer.Option("--config", help="a run's YAML, such as one of jobs/configs")]
EXIT_FAULT, EXIT_STOPPED = 1, 130
STOPPED = "stopped; run it again to go on"
LOG_WIDTH = 120
"""Columns of a log that is no terminal: tables fold less than in rich's 80, and the dashboard still shows them."""


@contextmanager
def opened(config: Path, change: Callable[[RunConfig], RunConfig] | None = None) -> Iterator[StageContext]:
    """Open a run: validate its config, connect, take the lease on its id, and write the filled-in config.

    ``change`` makes another run of the one that the file has, such as its pilot.

    A failure ends the process with one last line that names the first cause, and with code 2 for a known error, 1 for
    any other, and 130 after SIGTERM (``ray job stop``) or Ctrl-C.
    """
    console = make_console()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    stop_on_sigterm()
    with reporting_errors(console):
        run = load_run(config)
        if change is not None:
            run = change(run)
        run.load_taxonomy()
        require_known_family(run)
        console.print(f"run [bold]{run.run.name}[/], config {escape(str(config))}, seed {run.run.seed}")
        with connect(run.cluster, run.store, MIDDLEWARES) as session:
            stop_on_sigterm()
            # Report a submitted job's failure before disconnecting: Ray may kill its process group afterwards. Other
            # jobs report it last, below Ray's own lines on disconnecting.
            early_report = reporting_errors(console) if submission() is not None else nullcontext()
            with early_report, lease(session.store, run.run.name):
                for notice in notices(run):
                    console.print(f"[yellow]{escape(str(notice))}[/]", soft_wrap=True)
                run = _placed(console, run, session.store)
                run.write(run.run.output)
                _print_links(console, run, session)
                yield StageContext(run=run, store=session.store, work=run.run.output / "work", console=console)


def _placed(console: Console, run: RunConfig, store: ArtifactStore) -> RunConfig:
    """Return the run with its processes placed by the cluster's GPUs; say how many workers an expert has for that."""
    resources = grown_resources()
    if not chooses_workers(run):
        return settled(run, resources)
    begun = BegunWorkers(store, run).read()
    run = settled(run, resources, begun)
    console.print(escape(workers_notice(run, resources, begun)), soft_wrap=True)
    return run


@contextmanager
def reporting_errors(console: Console) -> Iterator[None]:
    """Print why the block failed or was stopped, and raise the exit code; an exit passes unchanged."""
    try:
        yield
    except typer.Exit:
        raise
    except KeyboardInterrupt:
        console.print(f"[bold yellow]{STOPPED}[/]")
        raise typer.Exit(EXIT_STOPPED) from None
    except Exception as error:
        raise typer.Exit(_report(console, error)) from None


def make_console() -> Console:
    """Return a console on the terminal, or on a log of ``COLUMNS`` or else ``LOG_WIDTH`` columns.

    A submitted job inherits ``COLUMNS`` from the shell that its cluster was started in, so there it is ignored.
    """
    console = Console()
    chosen = "COLUMNS" in os.environ and submission() is None
    return console if console.is_terminal or chosen else Console(width=LOG_WIDTH)


def _print_links(console: Console, run: RunConfig, session: Session) -> None:
    if submission() is not None and run.cluster.address == LOCAL:
        console.print("cluster.address is 'local', and this job was submitted to a cluster: it runs there")
    for link in links(run, session.dashboard, session.store.url()):
        console.print(f"{link.what:<14} {escape(link.where)}", soft_wrap=True)


def _report(console: Console, error: Exception) -> int:
    """Print why a job failed, the first cause in one last line, and return the exit code."""
    cause = first_cause(error)
    cause = unusable_path(cause) or cause
    known = isinstance(cause, (SafetyError, ClusterError))
    if not known:
        console.print(escape("".join(traceback.format_exception(error))), soft_wrap=True, highlight=False)
    text = str(cause) if known else f"{type(cause).__name__}: {cause}"
    console.print(f"[bold red]{escape(' '.join(text.split()))}[/]", soft_wrap=True)
    return EXIT_USER_ERROR if known else EXIT_FAULT


class Link(NamedTuple):
    """A place where a run can be watched, and what it shows."""

    what: str
    where: str


def job_page(dashboard: str) -> str:
    """Return the dashboard's page of the job that this process drives."""
    job = submission()
    return f"{dashboard}/#/jobs/{job.id if job else ray.get_runtime_context().get_job_id()}"


def links(run: RunConfig, dashboard: str | None, artifacts: str) -> list[Link]:
    """Return the links that a job prints at its start.

    Args:
        run: The run; its output folder is on the machine of the process that writes there.
        dashboard: The URL of Ray's dashboard; None when there is none.
        artifacts: The store's address.
    """
    output = run.run.output.resolve()
    found = [Link("Ray dashboard", dashboard), Link("this job", job_page(dashboard))] if dashboard else []
    return [
        *found,
        Link("expert curves", f"tensorboard --logdir {output / EXPERTS_FOLDER}"),
        Link("merge search", f"tensorboard --logdir {output / SEARCH_FOLDER}"),
        Link("artifacts", artifacts),
    ]


def stop_on_sigterm() -> None:
    """Have SIGTERM, which ``ray job stop`` and Kubernetes send, end the main thread's work as Ctrl-C does.

    Call it again after ``ray.init``, which sets a handler of its own. KeyboardInterrupt is the only exception of a
    handler that Ray's waits let through.
    """
    signal.signal(signal.SIGTERM, _stop)


def _stop(_number: int, _frame: FrameType | None) -> None:
    # Another SIGTERM would cut the clean-up short; SIGKILL is there for that.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt
