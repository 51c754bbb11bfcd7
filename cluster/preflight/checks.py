"""The checks: the store, and a cluster's nodes, versions, clocks, disks, GPUs and capacity."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from cluster.node_types import node_types
from cluster.preflight.check import Finding, failed, passed, warned, worst
from cluster.preflight.node import ClusterView, Node, NodeReport
from cluster.session import PROXY_CALLBACK
from cluster.store.artifacts import ArtifactStore

GIB = 2**30
DISK_WARN_GIB, DISK_FAIL_GIB = 10.0, 2.0
DISK_WARN_USED = 0.95
"""Share of a disk in use over which Ray stops spilling objects."""
CLOCK_WARN_S, CLOCK_FAIL_S = 2.0, 30.0
EPSILON = 1e-6
SUBMIT = "submit it: ray job submit --runtime-env cluster/runtime_env.yaml -- python -m jobs.preflight --config FILE"


class ResourceRequest(NamedTuple):
    """Equal actors, workers or replicas that a stage asks for."""

    what: str
    """For example "train: workers of one expert"."""
    field: str
    """The settings that ask for it."""
    each: Mapping[str, float]
    least: int
    """Below this number at the same time, the stage can never run."""
    wanted: int


def check_store(store: ArtifactStore) -> Finding:
    """Pass with the store's address; raise the ClusterError that explains why the store cannot be used."""
    store.check()
    return passed(store.url())


def check_conditional_writes(store: ArtifactStore) -> Finding:
    """Raise UnsafeStore when the store overwrites although a write's condition does not hold."""
    store.probe_conditional_writes()
    return passed("an object is written once, and replaced only in the expected version")


def check_loopback(reports: Sequence[NodeReport]) -> Finding:
    """Fail when a machine's requests to itself, such as those to an endpoint or a dashboard there, do not arrive."""
    fix = "add 127.0.0.1,localhost,::1 to no_proxy and NO_PROXY, or let a firewall pass loopback"
    faults = [failed(f"{report.node}: {report.loopback_fault}", fix) for report in reports if report.loopback_fault]
    return worst(faults, "requests to loopback arrive")


def check_nodes(view: ClusterView) -> Finding:
    """Fail when a node does not answer, or cannot import the code as the run's own actors must."""
    findings = [
        failed(
            f"{silent.node}: {silent.why}",
            f"if it is the code that is missing there, {SUBMIT}"
            if "ModuleNotFoundError" in silent.why
            else "read that node's logs in the dashboard",
        )
        for silent in view.silent
    ]
    findings.append(check_loopback(view.reports[1:]))
    return worst(findings, f"{len(view.reports) - 1} of {len(view.nodes)} report")


def check_versions(reports: Sequence[NodeReport]) -> Finding:
    """Fail when a node has another version of Python or of a library than the driver."""
    driver, *others = reports
    findings = []
    for report in others:
        differing = [
            f"{name} {report.versions[name]} (driver: {version})"
            for name, version in driver.versions.items()
            if report.versions.get(name) != version
        ]
        if differing:
            findings.append(failed(f"{report.node} has {', '.join(differing)}", "use one image on all nodes"))
    missing = [name for name, version in driver.versions.items() if version == "missing"]
    if missing:
        findings.append(failed(f"{driver.node} lacks {', '.join(missing)}", "install the project with its extras"))
    same = ", ".join(f"{name} {version}" for name, version in driver.versions.items())
    return worst(findings, same)


def check_clocks(reports: Sequence[NodeReport], store: ArtifactStore) -> Finding:
    """Compare the clocks of nodes and store with the driver's: a store rejects signatures of another time."""
    differences = {report.node: report.ahead_s for report in reports[1:]} | {"the store": store.clock_ahead_s()}
    findings = []
    for name, ahead_s in differences.items():
        text = f"{name} is {abs(ahead_s):.0f} s {'ahead' if ahead_s > 0 else 'behind'}"
        fix = "run a time service (chrony, systemd-timesyncd) on every machine"
        if abs(ahead_s) >= CLOCK_FAIL_S:
            findings.append(failed(text, fix))
        elif abs(ahead_s) >= CLOCK_WARN_S:
            findings.append(warned(text, fix))
    return worst(findings, f"{', '.join(differences)} within {CLOCK_WARN_S:g} s of this machine")


def check_disks(reports: Sequence[NodeReport]) -> Finding:
    """Check that files can be made where Ray keeps its session and where the driver writes, and the free space there."""
    findings, least = [], None
    for report in reports:
        findings += [
            failed(f"{report.node}: {fault}", "point run.output or TMPDIR to a folder of yours, or open this one")
            for fault in report.write_faults
        ]
        for disk in report.disks:
            free, used = disk.free / GIB, 1.0 - disk.free / max(1, disk.total)
            least = free if least is None else min(least, free)
            text = f"{report.node}: {disk.path} has {free:.1f} GiB free, {used:.0%} in use"
            if free < DISK_FAIL_GIB:
                findings.append(failed(text, "free some space, or point run.output and Ray's --temp-dir elsewhere"))
            elif free < DISK_WARN_GIB or used > DISK_WARN_USED:
                findings.append(warned(text, "free some space; Ray stops spilling objects on a disk that is 95% full"))
    return worst(findings, f"at least {least or 0.0:.0f} GiB free")


def check_gpus(view: ClusterView, asked: Sequence[str]) -> Finding:
    """Fail when a GPU is asked for and no node can compute on one.

    Args:
        view: The cluster.
        asked: The settings that ask for a GPU.
    """
    if not asked:
        return passed("none asked for")
    having = {node.address: node.resources["GPU"] for node in view.nodes if node.resources.get("GPU", 0.0) > 0}
    if not having and any(kind.resources.get("GPU", 0.0) > 0 for kind in node_types()):
        return passed("none yet: the autoscaler adds nodes with one")
    if not having:
        return failed(f"{', '.join(asked)} ask(s) for a GPU, and no node has one", "use a cluster with GPUs, or 'cpu'")
    reports = {report.node: report for report in view.reports}
    findings = []
    for address, count in having.items():
        report = reports.get(address)
        if report is None:
            continue
        if report.torch_cuda is None:
            findings.append(failed(f"{address}: torch is a CPU build", "install PyPI's torch: make demo DEVICE=cuda"))
        elif report.nvidia == 0:
            text = f"{address}: Ray counts {count:g} GPU and there is no /dev/nvidia*"
            findings.append(warned(text, "check the node's drivers"))
    return worst(findings, f"{sum(having.values()):g} on {len(having)} node(s)")


def check_store_from_nodes(reports: Sequence[NodeReport]) -> Finding:
    """Fail when a node cannot use the store: its actors write there."""
    findings = [
        failed(
            f"{report.node}: {report.store_error}",
            "give every node the store's address, credentials and a route; without store.endpoint, one shared folder",
        )
        for report in reports[1:]
        if report.store_error is not None
    ]
    return worst(findings, f"{len(reports) - 1} node(s) reach it")


def check_proxy_middlewares(reports: Sequence[NodeReport], import_path: str) -> Finding:
    """Fail when a node's environment names middlewares that it cannot import: Serve's proxy would not start there.

    Args:
        reports: The nodes' reports, the driver's first.
        import_path: The middlewares' current import path, for the fix.
    """
    fix = f"set {PROXY_CALLBACK}={import_path} before Ray starts, or unset it"
    findings = [
        failed(f"{report.node}: {PROXY_CALLBACK} is {report.missing_middlewares!r}, which is not there", fix)
        for report in reports[1:]
        if report.missing_middlewares is not None
    ]
    return worst(findings, "none that is missing")


def count_fitting(each: Mapping[str, float], nodes: Sequence[Node]) -> float:
    """Return how many processes with the resources ``each`` fit at once, with all nodes that can be added; none is split."""
    asked = {name: amount for name, amount in each.items() if amount > 0}
    if not asked:
        return math.inf

    def fitting(resources: Mapping[str, float]) -> int:
        return min(int(resources.get(name, 0.0) / amount + EPSILON) for name, amount in asked.items())

    there = sum(fitting(node.resources) for node in nodes)
    # What is there may be of the kinds that an autoscaler adds, and counts once.
    return max(there, sum(kind.max_nodes * fitting(kind.resources) for kind in node_types()))


def check_resource_requests(resource_requests: Sequence[ResourceRequest], nodes: Sequence[Node]) -> Finding:
    """Fail for what can never run; warn about what runs with fewer processes at once than it asks for."""
    held = ", ".join(f"{sum(node.resources.get(name, 0.0) for node in nodes):g} {name}" for name in ("CPU", "GPU"))
    findings = [_check_request(request, nodes) for request in resource_requests]
    return worst(findings, f"{held} on {len(nodes)} node(s): every stage fits")


def _check_request(request: ResourceRequest, nodes: Sequence[Node]) -> Finding:
    fitting = count_fitting(request.each, nodes)
    asked = " and ".join(f"{amount:g} {name}" for name, amount in sorted(request.each.items()) if amount > 0)
    if fitting < request.least:
        return failed(
            f"{request.what}: {request.least} of {asked} needed, and {fitting:g} fit",
            f"lower {request.field}, or use a larger cluster",
        )
    if fitting < request.wanted:
        return warned(
            f"{request.what}: {request.wanted} of {asked} asked for, and {fitting:g} fit",
            f"lower {request.field} to what there is, or expect it to take longer",
        )
    return passed(request.what)
