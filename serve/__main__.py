"""Keeps the endpoint of the last release up until it is interrupted: ``python -m serve --config FILE``."""

from __future__ import annotations

import signal
import threading
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from cluster.errors import EXIT_USER_ERROR, ClusterError, unusable_path
from cluster.session import Session, connect
from safety.errors import SafetyError
from serve.admission import MIDDLEWARES
from serve.app import build
from serve.config import ServeConfig, load_config
from serve.deployment import deploy, undeploy
from serve.loading import find_release


def up(config: ServeConfig, session: Session, console: Console) -> None:
    """Deploy the endpoint on a connected cluster and print where it answers."""
    config = config.model_copy(update={"store": session.store.config})
    for pointer in config.serve.pointers:
        console.print(f"serving [bold]{escape(pointer)}[/] = {find_release(config, pointer)}")
    with console.status("loading the models"):
        url = deploy(build(config.model_dump(mode="json")), config.serve)
    console.print(f"page       {url}/")
    console.print(f"images     POST {url}/v1/images/generations")
    console.print(f"models     {url}/v1/models")
    console.print(f"health     {url}/healthz")
    if session.dashboard:
        console.print(f"dashboard  {session.dashboard}/#/serve")


def main(config: Annotated[Path, typer.Option(help="a run's YAML")]) -> None:
    """Serve the release that the run's pointer names, until Ctrl-C."""
    console = Console()
    stop = threading.Event()
    try:
        settings = load_config(config)
        # An endpoint's key may be one that reads pointers and releases alone.
        with connect(settings.cluster, settings.store, MIDDLEWARES, publishes=False) as session:
            up(settings, session, console)
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, lambda *_: stop.set())
            console.print("Ctrl-C stops it")
            stop.wait()
            console.print("answering the requests in flight; Ctrl-C cuts them off")
            signal.signal(signal.SIGINT, signal.default_int_handler)
            with suppress(KeyboardInterrupt):
                undeploy(settings.serve)
    except (ClusterError, SafetyError, OSError) as error:
        known = unusable_path(error) or error
        if isinstance(known, OSError):
            raise
        console.print(f"[red]{escape(str(known))}[/]", soft_wrap=True)
        raise typer.Exit(EXIT_USER_ERROR) from None


if __name__ == "__main__":
    typer.run(main)
