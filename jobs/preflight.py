"""Checks everything that a run names and needs, then tries it out: ``python -m jobs.preflight --config FILE``.

The checks take seconds. Where all of them pass, eight pictures are drawn and judged and a training step is taken where the
run will, for what the run needs in hours, memory and bytes (``jobs.trial``).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import ray
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cluster.errors import EXIT_USER_ERROR, ClusterError
from cluster.preflight.check import (
    CHECK_TIMEOUT_S,
    Check,
    Finding,
    Result,
    Status,
    failed,
    passed,
    run_check,
    run_checks,
    warned,
    worst,
)
from cluster.preflight.checks import (
    check_clocks,
    check_conditional_writes,
    check_disks,
    check_gpus,
    check_loopback,
    check_nodes,
    check_proxy_middlewares,
    check_resource_requests,
    check_store,
    check_store_from_nodes,
    check_versions,
)
from cluster.preflight.node import ClusterView, machine_view, running_view
from cluster.preflight.upload import check_upload
from cluster.session import (
    LOCAL,
    ROOT,
    TOKEN,
    connect_ray,
    ensure_token,
    open_store,
    resolve_address,
    worker_environment,
)
from cluster.store.artifacts import ArtifactStore
from cluster.submission import submission
from jobs.run.cards import card_table, check_memory
from jobs.run.config import RunConfig, load_run
from jobs.run.launch import ConfigOption, make_console, reporting_errors
from jobs.run.load_checks import LOAD_TIMEOUT_S, LoadChecks, finding
from jobs.run.name_checks import check_base_model, check_pointers, endpoint_problems, named_problems
from jobs.run.needs import STAGES, name_problems
from jobs.run.notices import check_notices
from jobs.run.resource_requests import gpu_settings, resource_requests, without_gpu
from jobs.trial.report import print_report
from jobs.trial.trial import save, try_out, used_prompts
from jobs.trial.writing import try_writing
from safety.errors import SafetyError
from safety.taxonomy import Taxonomy
from serve.admission import MIDDLEWARES
from serve.endpoint_config import EndpointConfig
from serve.surroundings import find_controller, find_listener, require_purpose

TONES = {Status.PASS: "green", Status.WARN: "yellow", Status.FAIL: "bold red"}
FIRST = "fix what stands above it first"
RAY_TIMEOUT_S = 30.0
"""The longest wait until a running cluster answers."""
NAMES_TIMEOUT_S = 45.0
"""The longest look at what the settings name; a busy cluster's nodes may have to look too."""
STORE_PATIENCE_S = 8.0
"""How long a request to a store that does not answer is retried here; a run waits longer."""


class Preflight:
    """Checks of one run; the cluster that they join stays connected until the ``stack`` is closed."""

    def __init__(self, run: RunConfig, taxonomy: Taxonomy, stack: ExitStack) -> None:
        self.run, self.taxonomy, self.stack = run, taxonomy, stack
        self.cluster = resolve_address(run.cluster)
        patience = min(run.store.patience_s, STORE_PATIENCE_S)
        self.store_config = run.store.model_copy(update={"patience_s": patience})
        self.store = ArtifactStore(self.store_config)
        self.view: ClusterView | None = None
        self.joined = False
        self.unreachable_model = False

    def results(self) -> list[Result]:
        """Run every check: the cluster is opened, names are looked at, then all other checks run at the same time."""
        opened = [run_check(Check("Ray", self._reach_ray))]
        opened += run_checks([Check("names", self._names, NAMES_TIMEOUT_S)], CHECK_TIMEOUT_S)
        checks = [
            Check("pointers", lambda: check_pointers(self.run, self.store)),
            Check("base model", lambda: check_base_model(self.run), LOAD_TIMEOUT_S),
            Check("store", lambda: check_store(open_store(self.store_config))),
            Check("conditional writes", lambda: check_conditional_writes(self.store)),
            Check("versions", lambda: self._of_view(lambda view: check_versions(view.reports))),
            Check(
                "resources",
                lambda: self._of_view(lambda view: check_resource_requests(resource_requests(self.run), view.nodes)),
            ),
            Check("GPUs", lambda: self._of_view(self._gpus)),
            Check("clocks", lambda: self._of_view(lambda view: check_clocks(view.reports, self.store))),
            Check("disks", lambda: self._of_view(lambda view: check_disks(view.reports))),
            Check("upload", lambda: check_upload(ROOT)),
            *self._load_checks(),
        ]
        if self.joined:
            checks += self._node_checks()
        return opened + run_checks(checks, CHECK_TIMEOUT_S)

    def _load_checks(self) -> list[Check]:
        """Return the checks that load or look into the model and its like; none for a model whose address does not answer."""
        if self.unreachable_model:
            return [Check("model", lambda: warned("not checked: its address does not answer", FIRST))]
        loads = LoadChecks(self.run, self.taxonomy, joined=self.joined)
        checks = [Check("method", lambda: loads.alone(lambda: check_notices(self.run)), LOAD_TIMEOUT_S)]
        if self.view is not None:
            checks += loads.checks()
            checks.append(Check("memory", lambda: loads.alone(self._memory), LOAD_TIMEOUT_S))
        return checks

    def _node_checks(self) -> list[Check]:
        """Return the checks of a running cluster's nodes."""
        checks = [
            Check("nodes", lambda: self._of_view(check_nodes)),
            Check("store from the nodes", lambda: self._of_view(lambda view: check_store_from_nodes(view.reports))),
            Check(
                "proxy middlewares",
                lambda: self._of_view(lambda view: check_proxy_middlewares(view.reports, MIDDLEWARES)),
            ),
        ]
        if find_controller() is not None:
            checks.append(Check("endpoint", self._endpoint))
        return checks

    def _reach_ray(self) -> Finding:
        """Join the cluster, or report on the machine that would start one."""
        folder = self.run.run.output
        if self.cluster.address == LOCAL and not ray.is_initialized():
            self.view = machine_view(self.cluster, folder)
            [machine] = self.view.nodes
            where = (
                f"a local cluster of {machine.resources['CPU']:g} CPU and {machine.resources['GPU']:g} GPU will start"
            )
            return self._authorised(where)
        patience = min(self.cluster.start_timeout_s, RAY_TIMEOUT_S)
        cluster = self.cluster.model_copy(update={"start_timeout_s": patience})
        dashboard = self.stack.enter_context(connect_ray(cluster, worker_environment(cluster)))
        self.view, self.joined = running_view(folder, self.store.config, CHECK_TIMEOUT_S), True
        where = f"{ray.get_runtime_context().gcs_address}, {len(self.view.nodes)} node(s)"
        return self._authorised(f"{where}, dashboard {dashboard}" if dashboard else where)

    def _authorised(self, where: str) -> Finding:
        """Check what a driver needs beside the cluster: its token, where it is to have one, and its own loopback."""
        assert self.view is not None
        return worst([self._token(), check_loopback(self.view.reports[:1])], where)

    def _token(self) -> Finding:
        """Warn when the cluster asks for no token, or has none that lasts; a submitted job uses its cluster's setting."""
        if submission() is not None:
            return passed("the cluster's own")
        if self.cluster.auth != TOKEN:
            return warned("the cluster lets in anyone who reaches its ports", "set cluster.auth to 'token'")
        fault = ensure_token() if self.cluster.address == LOCAL else None
        if fault is None:
            return passed("a token")
        return warned(
            f"{fault}: the run makes a token of its own, and other processes join its cluster only with that",
            "set HOME to a folder of yours, or RAY_AUTH_TOKEN",
        )

    def _of_view(self, run: Callable[[ClusterView], Finding]) -> Finding:
        return warned("not checked: Ray cannot be reached", FIRST) if self.view is None else run(self.view)

    def _endpoint(self) -> Finding:
        """Fail when the endpoint would be open to others where the cluster's Serve listens already."""
        listener = find_listener()
        try:
            require_purpose(self.run.serve, listener)
            # The pipeline ends with an endpoint of its own for a moment, which offers the base model and asks for no key.
            require_purpose(EndpointConfig(), listener)
        except SafetyError as error:
            return failed(error.message, error.fix)
        return passed("Serve has stopped" if listener is None else f"Serve listens on {listener.host}")

    def _names(self) -> Finding:
        """Fail for the folders, files and addresses that the settings name and there is none of."""
        unanswered = endpoint_problems(self.run)
        self.unreachable_model = bool(unanswered)
        try:
            problems = [*unanswered, *named_problems(self.run)]
        except SafetyError as error:
            return failed(f"{error.field}: {error.message}", error.fix)
        return finding(problems, f"all that {self.run.run.name} names is there")

    def _memory(self) -> Finding:
        """Fail when a training step does not fit where the run's workers will be."""
        try:
            return check_memory(self.run)
        except (SafetyError, ClusterError) as error:
            return warned(f"not checked: {error.message}", FIRST)

    def _gpus(self, view: ClusterView) -> Finding:
        lacking = without_gpu(self.run)
        if lacking:
            return failed(
                f"the model is on {self.run.model.device!r}, and {', '.join(lacking)} give(s) no GPU",
                "set them to 1 or a share of 1, or set model.device to 'cpu'",
            )
        return check_gpus(view, gpu_settings(self.run))


def run(config: Path) -> list[Result]:
    """Check a run's config and, when it can be read, everything that it names."""
    with ExitStack() as stack:
        results, _ = checked(config, stack)
        return results


def checked(config: Path, stack: ExitStack) -> tuple[list[Result], Preflight | None]:
    """Check a run as ``run`` does; the cluster that its preflight joins stays connected until the ``stack`` is closed.

    The preflight is None where the config cannot be read.
    """
    loaded: list[tuple[RunConfig, Taxonomy]] = []

    def load() -> Finding:
        try:
            found = load_run(config)
            taxonomy = found.load_taxonomy()
        except SafetyError as error:
            return failed(error.message, error.fix)
        loaded.append((found, taxonomy))
        return finding(name_problems(found, taxonomy, STAGES), f"run {found.run.name}")

    result = run_check(Check("config", load))
    if not loaded:
        return [result], None
    preflight = Preflight(*loaded[0], stack)
    return [result, *preflight.results()], preflight


def table(results: Sequence[Result], seconds: float) -> Table:
    """Return the results as a table, each bad one with its fix."""
    counts = {status: sum(result.finding.status is status for result in results) for status in Status}
    counted = ", ".join(f"{count} {status}" for status, count in counts.items())
    shown = Table(title=f"preflight: {counted}, in {seconds:.0f} s", title_justify="left")
    shown.add_column("check", no_wrap=True)
    shown.add_column("")
    shown.add_column("found", overflow="fold")
    shown.add_column("fix", overflow="fold")
    for name, (status, found, fix), _ in results:
        shown.add_row(name, f"[{TONES[status]}]{status}[/]", escape(found), escape(fix))
    return shown


def report(console: Console, config: Path, *, quick: bool = False) -> int:
    """Run the checks, print the table, try the run out where all is well, and return the exit code.

    Args:
        console: The terminal.
        config: The run's YAML.
        quick: Leave out the trial.
    """
    started = time.monotonic()
    with ExitStack() as stack:
        results, preflight = checked(config, stack)
        console.print(table(results, time.monotonic() - started))
        bad = [result for result in results if result.finding.status is Status.FAIL]
        for name, (_, found, fix), _ in bad[:1]:
            console.print(f"[bold red]{escape(f'{name}: {found}. Fix: {fix}')}[/]", soft_wrap=True)
        if bad or preflight is None:
            return EXIT_USER_ERROR
        return 0 if quick else report_trial(console, preflight)


def report_trial(console: Console, preflight: Preflight) -> int:
    """Draw and judge eight pictures and take a training step; print what follows, and return the exit code."""
    own, taxonomy, view = preflight.run, preflight.taxonomy, preflight.view
    assert view is not None
    console.print("the checks have passed; drawing eight pictures and taking a training step")
    started = time.monotonic()
    try:
        with reporting_errors(console):
            writer, written = try_writing(own, taxonomy)
            trial = try_out(own, taxonomy, used_prompts(own, taxonomy, written), view.nodes, writer)
            print_report(console, trial.report, save(trial, own.run.output))
    except typer.Exit as end:
        return end.exit_code
    console.print(f"tried out in {time.monotonic() - started:.0f} s")
    return 0


def report_cards(console: Console, config: Path) -> int:
    """Print the presets by card and return the exit code."""
    try:
        console.print(card_table(load_run(config)))
    except SafetyError as error:
        console.print(f"[bold red]{escape(str(error))}[/]", soft_wrap=True)
        return EXIT_USER_ERROR
    return 0


def main(
    config: ConfigOption,
    cards: Annotated[bool, typer.Option("--cards", help="list what fits on which card for the run's model")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="check alone: draw no pictures, estimate nothing")] = False,
) -> None:
    """Check a run before any work, and try it out; exit with 2 when a check fails."""
    logging.basicConfig(level=logging.ERROR, format="%(levelname)s %(name)s: %(message)s")
    if cards:
        raise typer.Exit(report_cards(make_console(), config))
    raise typer.Exit(report(make_console(), config, quick=quick))


if __name__ == "__main__":
    typer.run(main)
