"""A check, what it finds, and running several at once so that none can hold up or take down another."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import NamedTuple

from cluster.errors import ClusterError


class Status(StrEnum):
    """How a check ends, the worst last."""

    PASS = "pass"
    WARN = "warn"
    FAIL = "fail"


class Finding(NamedTuple):
    """What a check says: how it ended, what is so, and what to do about it."""

    status: Status
    found: str
    fix: str = ""


class Check(NamedTuple):
    """A name and what looks."""

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
    """Return a finding that a run can live with."""
    return Finding(Status.WARN, found, fix)


def failed(found: str, fix: str) -> Finding:
    """Return a finding that would end a run."""
    return Finding(Status.FAIL, found, fix)


def worst(findings: Sequence[Finding], otherwise: str) -> Finding:
    """Return several findings as one, with the worst's status; ``otherwise`` is said when none is worse than a pass."""
    order = list(Status)
    bad = [finding for finding in findings if finding.status is not Status.PASS]
    if not bad:
        return passed(otherwise)
    status = max((finding.status for finding in bad), key=order.index)
    said = [finding for finding in bad if finding.status is status]
    found = "; ".join(finding.found for finding in said)
    return Finding(status, found, "; ".join(dict.fromkeys(finding.fix for finding in said)))


def run_check(check: Check) -> Result:
    """Run a check in this thread; an error it raises is its finding."""
    started = time.monotonic()
    try:
        finding = check.run()
    except ClusterError as error:
        finding = failed(f"{error.field}: {error.message}", error.fix)
    except Exception as error:  # A fault of one check must not hide what the others find.
        text = " ".join(f"{type(error).__name__}: {error}".split())
        finding = failed(text, "mend what it names; if it names nothing of yours, report it")
    return Result(check.name, finding, time.monotonic() - started)


def run_checks(checks: Sequence[Check], timeout_s: float) -> list[Result]:
    """Run checks at once and return their results in order; one that takes longer than ``timeout_s`` has failed."""
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
    late = failed(f"no answer in {timeout_s:g} s", "look at what it reaches for: a firewall, a name, a busy machine")
    finished = dict(results)
    return [finished.get(check.name, Result(check.name, late, timeout_s)) for check in checks]
