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
    """A named check: a function that returns its finding."""

    name: str
    run: Callable[[], Finding]


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
    """Run checks at the same time and return their results in order; one that takes over ``timeout_s`` has failed."""
    results: dict[str, Result] = {}
    threads = [
        threading.Thread(target=lambda check=check: results.update({check.name: run_check(check)}), daemon=True)
        for check in checks
    ]
    deadline = time.monotonic() + timeout_s
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    late = failed(f"no answer in {timeout_s:g} s", "check what it connects to: a firewall, a name, a busy machine")
    finished = dict(results)
    return [finished.get(check.name, Result(check.name, late, timeout_s)) for check in checks]
