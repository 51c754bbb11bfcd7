"""How every job starts and ends: config, store, cluster and lease opened in order, errors told by their first cause."""

from __future__ import annotations

import logging
import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from cluster.errors import ClusterError
from cluster.lease import lease
from cluster.session import LOCAL, Session, connect
from cluster.submission import submission
from jobs.run.artifacts import StageContext
from jobs.run.config import RunConfig, load_run
from jobs.run.links import links
from jobs.run.ray_data import first_cause
from jobs.run.stopping import stop_on_sigterm
from safety.errors import SafetyError
from serve.admission import MIDDLEWARES

ConfigOption = Annotated[Path, typer.Option("--config", help="a run's YAML, such as one of jobs/configs")]
EXIT_USER_ERROR, EXIT_FAULT, EXIT_STOPPED = 2, 1, 130
STOPPED = "stopped; run it again to go on"
LOG_WIDTH = 120
"""Columns of a log, where no terminal says: tables fold less than in rich's 80, and the dashboard still shows them."""


@contextmanager
def opened(config: Path) -> Iterator[StageContext]:
    """Open a run: validate its config, connect, take the lease on its id, and write the filled-in config.

    The process ends with a code other than 0 and one last line that says why: 2 and the first cause of a known error,
    1 and that of any other, 130 when it was stopped by SIGTERM (``ray job stop``) or Ctrl-C.
    """
    console = make_console()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    stop_on_sigterm()
    with _reporting_errors(console):
        run = load_run(config)
        run.load_taxonomy()
        console.print(f"run [bold]{run.run.name}[/], config {config}, seed {run.run.seed}")
        with connect(run.cluster, run.store, MIDDLEWARES) as session:
            stop_on_sigterm()
            # A submitted job's end is told here already: Ray may kill its process group as soon as its driver leaves the
            # cluster. Others tell it last, below what Ray has to say of the leaving.
            early_report = _reporting_errors(console) if submission() is not None else nullcontext()
            with early_report, lease(session.store, run.run.name):
                run.write(run.run.output)
                _say_where(console, run, session)
                yield StageContext(run=run, store=session.store, work=run.run.output / "work", console=console)


@contextmanager
def _reporting_errors(console: Console) -> Iterator[None]:
    """Print why the block ended, if not by itself, and raise the exit code; what is an exit already passes."""
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
    """Return the terminal, or a log of ``LOG_WIDTH`` columns, or of as many as ``COLUMNS`` says.

    A submitted job inherits ``COLUMNS`` from whatever shell its cluster was started in, which says nothing of its log.
    """
    console = Console()
    chosen = "COLUMNS" in os.environ and submission() is None
    return console if console.is_terminal or chosen else Console(width=LOG_WIDTH)


def _say_where(console: Console, run: RunConfig, session: Session) -> None:
    if submission() is not None and run.cluster.address == LOCAL:
        console.print("cluster.address is 'local', and this job was submitted to a cluster: it runs there")
    for link in links(run, session.dashboard, session.store.url()):
        console.print(f"{link.what:<14} {escape(link.where)}", soft_wrap=True)


def _report(console: Console, error: Exception) -> int:
    """Print why a job failed, the first cause in one last line, and return the exit code."""
    cause = first_cause(error)
    known = isinstance(cause, (SafetyError, ClusterError))
    if not known:
        console.print(escape("".join(traceback.format_exception(error))), soft_wrap=True, highlight=False)
    text = str(cause) if known else f"{type(cause).__name__}: {cause}"
    console.print(f"[bold red]{escape(' '.join(text.split()))}[/]", soft_wrap=True)
    return EXIT_USER_ERROR if known else EXIT_FAULT
