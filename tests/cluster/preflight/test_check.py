"""Checks run at once: neither a slow one nor a broken one takes another down."""

from __future__ import annotations

import time

from cluster.errors import ClusterError
from cluster.preflight.check import Check, Finding, Status, failed, passed, run_checks, warned, worst


def broken() -> Finding:
    raise ZeroDivisionError("no\nnumber")


def refused() -> Finding:
    raise ClusterError("it is not there", field="store.bucket", fix="make it")


def slow() -> Finding:
    time.sleep(30)
    return passed("too late")


def test_each_check_has_its_own_end_and_they_keep_their_order() -> None:
    started = time.monotonic()
    checks = [
        Check("slow", slow),
        Check("broken", broken),
        Check("refused", refused),
        Check("good", lambda: passed("x")),
    ]
    results = run_checks(checks, 0.5)
    assert time.monotonic() - started < 5
    assert [result.name for result in results] == ["slow", "broken", "refused", "good"]
    assert [str(result.finding.status) for result in results] == ["fail", "fail", "fail", "pass"]
    assert results[0].finding.found == "no answer in 0.5 s"
    assert results[1].finding.found == "ZeroDivisionError: no number"
    assert results[2].finding == failed("store.bucket: it is not there", "make it")


def test_the_worst_of_several_findings_counts() -> None:
    assert worst([passed("a"), passed("b")], "all is well") == passed("all is well")
    assert worst([passed("a"), warned("b", "do"), warned("c", "do")], "") == Finding(Status.WARN, "b; c", "do")
    assert worst([warned("b", "do"), failed("c", "now"), passed("d")], "") == failed("c", "now")
    assert worst([], "nothing to check").status is Status.PASS
