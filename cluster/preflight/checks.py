"""The checks of a view: versions, clocks, disks, GPUs, the store as the nodes see it."""

from __future__ import annotations

from collections.abc import Sequence

from cluster.preflight.check import Finding, failed, passed, warned, worst
from cluster.preflight.limits import PreflightLimits
from cluster.preflight.node import NodeReport
from cluster.preflight.view import ClusterView
from cluster.store.artifacts import ArtifactStore

GIB = 2**30
SUBMIT = "submit it: ray job submit --runtime-env cluster/runtime_env.yaml -- python -m jobs.preflight --config FILE"


def check_nodes(view: ClusterView) -> Finding:
    """Fail when a node does not answer, or cannot import the code as the run's own actors must."""
    findings = [
        failed(
            f"{silent.node}: {silent.why}",
            f"if it is the code that is missing there, {SUBMIT}"
            if "ModuleNotFoundError" in silent.why
            else "look at that node's logs in the dashboard",
        )
        for silent in view.silent
    ]
    return worst(findings, f"{len(view.reports) - 1} of {len(view.nodes)} report")


def check_versions(reports: Sequence[NodeReport]) -> Finding:
    """Fail when a node has another version of Python or of a library than the driver: a run is made with one."""
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


def check_clocks(reports: Sequence[NodeReport], store: ArtifactStore, limits: PreflightLimits) -> Finding:
    """Compare the nodes' clocks and the store's with the driver's; a store refuses signatures of another time."""
    differences = {report.node: report.ahead_s for report in reports[1:]} | {"the store": store.clock_ahead_s()}
    findings = []
    for who, ahead_s in differences.items():
        text = f"{who} is {abs(ahead_s):.0f} s {'ahead' if ahead_s > 0 else 'behind'}"
        fix = "run a time service (chrony, systemd-timesyncd) on every machine"
        if abs(ahead_s) >= limits.clock_fail_s:
            findings.append(failed(text, fix))
        elif abs(ahead_s) >= limits.clock_warn_s:
            findings.append(warned(text, fix))
    return worst(findings, f"{', '.join(differences)} within {limits.clock_warn_s:g} s of this machine")


def check_disks(reports: Sequence[NodeReport], limits: PreflightLimits) -> Finding:
    """Look for room where Ray keeps its session and where the driver writes."""
    findings, least = [], None
    for report in reports:
        for disk in report.disks:
            free, used = disk.free / GIB, 1.0 - disk.free / max(1, disk.total)
            least = free if least is None else min(least, free)
            text = f"{report.node}: {disk.path} has {free:.1f} GiB free, {used:.0%} in use"
            if free < limits.disk_fail_gib:
                findings.append(failed(text, "free some space, or point run.output and Ray's --temp-dir elsewhere"))
            elif free < limits.disk_warn_gib or used > limits.disk_warn_used:
                findings.append(warned(text, "free some space; Ray stops to spill objects on a disk that is 95% full"))
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
    if not having:
        return failed(f"{', '.join(asked)} ask(s) for a GPU, and no node has one", "use a cluster with GPUs, or 'cpu'")
    reports = {report.node: report for report in view.reports}
    findings = []
    for address, count in having.items():
        report = reports.get(address)
        if report is None:
            continue
        if report.torch_cuda is None:
            findings.append(failed(f"{address}: torch is a CPU build", "install torch without constraints-cpu.txt"))
        elif report.nvidia == 0:
            findings.append(
                warned(
                    f"{address}: Ray counts {count:g} GPU and there is no /dev/nvidia*", "look at the node's drivers"
                )
            )
    return worst(findings, f"{sum(having.values()):g} on {len(having)} node(s)")


def check_store_from_nodes(reports: Sequence[NodeReport]) -> Finding:
    """Fail when a node cannot use the store: its actors write there."""
    findings = [
        failed(f"{report.node}: {report.store_error}", "give every node the store's address, credentials and a route")
        for report in reports[1:]
        if report.store_error is not None
    ]
    return worst(findings, f"{len(reports) - 1} node(s) reach it")


def check_one_host(view: ClusterView) -> Finding:
    """Fail when the embedded store, which answers on loopback alone, is meant for several machines."""
    hosts = {node.address for node in view.nodes}
    if len(hosts) > 1:
        return failed(
            f"the embedded store answers on this machine alone, and the cluster has {len(hosts)}",
            "name in store.endpoint a store that all of them reach",
        )
    return passed("one machine, as it needs")
