"""How every job starts and ends: config, store, cluster and lease opened in order, errors told by their first cause."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from cluster.errors import ClusterError
from cluster.lease import lease
from cluster.session import connect
from jobs.config import load_run
from jobs.stage import StageContext
from jobs.streaming import first_cause
from safety.errors import SafetyError

ConfigOption = Annotated[Path, typer.Option("--config", help="a run's YAML, such as jobs/configs/emoji.yaml")]
EXIT_USER_ERROR = 2


@contextmanager
def opened(config: Path) -> Iterator[StageContext]:
    """Open a run: validate its config, connect, take the lease on its id, and write the filled-in config.

    A known error ends the process with exit code 2 and its cause as the last line; any other is raised.
    """
    console = Console()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        run = load_run(config)
        run.load_taxonomy()
        console.print(f"run [bold]{run.run.name}[/], config {config}, seed {run.run.seed}")
        with connect(run.cluster, run.store) as session, lease(session.store, run.run.name):
            run.write(run.run.output)
            if session.dashboard:
                console.print(f"Ray dashboard {session.dashboard}")
            yield StageContext(run=run, store=session.store, work=run.run.output / "work", console=console)
    except Exception as error:
        cause = first_cause(error)
        if not isinstance(cause, (SafetyError, ClusterError)):
            raise
        console.print(f"[bold red]{escape(str(cause))}[/]", soft_wrap=True)
        raise typer.Exit(EXIT_USER_ERROR) from None
