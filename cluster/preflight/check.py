"""Checks and their findings, run several at once so that none can hold up or take down another."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import NamedTuple

from cluster.errors import ClusterError

CHECK_TIMEOUT_S = 20.0
"""The longest time of one check."""


class Status(StrEnum):
    """Outcomes of a check, the worst last."""

    PASS = "pass"
    WARN = "warn"
    FAIL = "fail"


class Finding(NamedTuple):
    """Result of a check: its status, what it found, and what to do about it."""

    status: Status
    found: str
    fix: str = ""


class Check(NamedTuple):
    """A named check: a function that returns its finding, and its own time limit where it has one."""

    name: str
    run: Callable[[], Finding]
    timeout_s: float | None = None


class Result(NamedTuple):
    """A check's name, its finding and the seconds it took."""

    name: str
    finding: Finding
    seconds: float


def passed(found: str) -> Finding:
    """Return a finding with nothing to do."""
    return Finding(Status.PASS, found)


def warned(found: str, fix: str) -> Finding:
    """Return a finding that does not stop a run."""
    return Finding(Status.WARN, found, fix)


def failed(found: str, fix: str) -> Finding:
    """Return a finding that would end a run."""
    return Finding(Status.FAIL, found, fix)


def worst(findings: Sequence[Finding], otherwise: str) -> Finding:
    """Combine findings into one with the worst status; its text is ``otherwise`` when all of them passed."""
    order = list(Status)
    bad = [finding for finding in findings if finding.status is not Status.PASS]
    if not bad:
        return passed(otherwise)
    status = max((finding.status for finding in bad), key=order.index)
    worst_ones = [finding for finding in bad if finding.status is status]
    found = "; ".join(finding.found for finding in worst_ones)
    return Finding(status, found, "; ".join(dict.fromkeys(finding.fix for finding in worst_ones)))


def run_check(check: Check) -> Result:
    """Run a check in this thread; an error that it raises becomes its finding."""
    started = time.monotonic()
    try:
        finding = check.run()
    except ClusterError as error:
        finding = failed(f"{error.field}: {error.message}", error.fix)
    except Exception as error:  # A fault of one check must not hide what the others find.
        text = " ".join(f"{type(error).__name__}: {error}".split())
        finding = failed(text, "fix what it names; if it names nothing of yours, report it")
    return Result(check.name, finding, time.monotonic() - started)


def run_checks(checks: Sequence[Check], timeout_s: float) -> list[Result]:
    """Run checks at the same time and return their results in order.

    One that takes over its own time, or over ``timeout_s`` where it has none, has failed.
    """
    results: dict[str, Result] = {}
    threads = [
        threading.Thread(target=lambda check=check: results.update({check.name: run_check(check)}), daemon=True)
        for check in checks
    ]
    started = time.monotonic()
    for thread in threads:
        thread.start()
    for check, thread in zip(checks, threads, strict=True):
        thread.join(max(0.0, started + (check.timeout_s or timeout_s) - time.monotonic()))
    finished = dict(results)
    return [finished.get(check.name, _late(check.name, check.timeout_s or timeout_s)) for check in checks]


def _late(name: str, timeout_s: float) -> Result:
    """Return the result of a check that has not answered."""
    fix = "check what it connects to: a firewall, a name, a busy machine"
    return Result(name, failed(f"no answer in {timeout_s:g} s", fix), timeout_s)
