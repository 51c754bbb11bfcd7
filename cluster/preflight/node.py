"""The nodes of a cluster, running or about to be started here, and the report of each node on itself."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.errors import ClusterError
from cluster.loopback import loopback_fault
from cluster.session import DEVICES, PROXY_CALLBACK, ClusterConfig
from cluster.shared_folder import error_at_node, marked
from cluster.store.artifacts import ArtifactStore
from cluster.store.config import StoreConfig
from cluster.store.manifest import LIBRARIES

HERE = "this machine"
NODE_STORE_LIMITS = {"connect_timeout_s": 3.0, "read_timeout_s": 5.0, "patience_s": 1.0}
"""A node that does not reach the store must report so before it counts as unresponsive."""
CUDA = re.compile(r"^cuda\b[^=]*= *['\"]([^'\"]+)['\"]", re.MULTILINE)


class Disk(NamedTuple):
    """Free and total bytes of the file system that holds a folder."""

    path: str
    free: int
    total: int


class NodeReport(NamedTuple):
    """The report of a process on one node."""

    node: str
    """Its address, or "this machine"."""
    versions: dict[str, str]
    unix_s: float
    """Its clock."""
    disks: tuple[Disk, ...]
    nvidia: int
    """Number of NVIDIA devices."""
    torch_cuda: str | None
    """The CUDA version that its torch is built for; None for a CPU build."""
    store_error: str | None
    """Why the store cannot be used from there; None where it can."""
    missing_middlewares: str | None = None
    """The import path of Serve's proxy middlewares in its environment, where it cannot be imported."""
    write_faults: tuple[str, ...] = ()
    """Folders in which no file can be made, and why."""
    loopback_fault: str | None = None
    """Why a request to its own loopback does not arrive, where it does not."""
    ahead_s: float = 0.0
    """Seconds by which its clock is certainly ahead of the driver's; negative when it is behind."""


class Node(NamedTuple):
    """A live node of the cluster, as Ray knows it."""

    id: str
    address: str
    resources: dict[str, float]


class UnresponsiveNode(NamedTuple):
    """A node that did not report, and why."""

    node: str
    why: str


class ClusterView(NamedTuple):
    """A cluster's nodes and their reports."""

    nodes: list[Node]
    reports: list[NodeReport]
    """The driver's first."""
    silent: list[UnresponsiveNode]


def machine_view(config: ClusterConfig, folder: Path) -> ClusterView:
    """Return the view of the local cluster that a run would start; ``folder`` is where the driver writes."""
    gpus = sum(1 for _ in DEVICES.glob("nvidia[0-9]*")) if config.num_gpus is None else config.num_gpus
    cpus = config.num_cpus or os.cpu_count() or 1
    resources = {"CPU": float(cpus), "GPU": float(gpus)}
    return ClusterView([Node("", HERE, resources)], [report_here(HERE, [folder], None)], [])


def running_view(folder: Path, store: StoreConfig | None, timeout_s: float) -> ClusterView:
    """Return the view of the connected cluster.

    Args:
        folder: Where the driver writes.
        store: The store that every node must reach; None: it is not tried.
        timeout_s: The longest wait for the nodes' reports.
    """
    nodes = [Node(n["NodeID"], n["NodeManagerAddress"], dict(n["Resources"])) for n in ray.nodes() if n["Alive"]]
    impatient = None if store is None else store.absolute().model_copy(update=NODE_STORE_LIMITS)
    with _mark_of(impatient) as mark:
        reports, silent = report_nodes(nodes, [], impatient, timeout_s, mark)
    return ClusterView(nodes, [report_here(HERE, [folder], None), *reports], silent)


@contextmanager
def _mark_of(store: StoreConfig | None) -> Iterator[str | None]:
    """Keep a mark in a store that is a folder, by which nodes know it; yield None where there is none to keep."""
    with ExitStack() as stack:
        mark = None
        if store is not None and store.endpoint is None:
            # The store's own check reports why it cannot be written.
            with suppress(ClusterError):
                mark = stack.enter_context(marked(ArtifactStore(store)))
        yield mark


def report_here(node: str, folders: Sequence[Path], store: StoreConfig | None, mark: str | None = None) -> NodeReport:
    """Return this machine's report; ``store`` is tried when it is given, by the driver's ``mark`` where it left one."""
    written = (Path(tempfile.gettempdir()), *folders)
    return NodeReport(
        node=node,
        versions={"python": platform.python_version(), **{name: _version(name) for name in LIBRARIES}},
        unix_s=time.time(),
        disks=tuple(disk_of(folder) for folder in written),
        nvidia=sum(1 for _ in DEVICES.glob("nvidia[0-9]*")),
        torch_cuda=_torch_cuda(),
        store_error=None if store is None else _store_error(store, mark),
        missing_middlewares=_missing_middlewares(),
        write_faults=tuple(filter(None, map(write_fault, written))),
        loopback_fault=loopback_fault(),
    )


def _version(package: str) -> str:
    try:
        # A node with a GPU may have another build of the same version.
        return importlib.metadata.version(package).partition("+")[0]
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def disk_of(folder: Path) -> Disk:
    """Return the free and total bytes of the file system that a folder is or will be on."""
    usage = shutil.disk_usage(_existing(folder))
    return Disk(str(folder), usage.free, usage.total)


def _existing(folder: Path) -> Path:
    """Return the folder, or the one above it in which it will be made."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(path))


def write_fault(folder: Path) -> str | None:
    """Return why no file can be made in a folder, if so: a mode does not say it of a read-only file system."""
    try:
        with tempfile.TemporaryFile(dir=_existing(folder)):
            return None
    except OSError as error:
        return f"{folder} cannot be written ({error.strerror})"


def _torch_cuda() -> str | None:
    """Return torch's CUDA version as its files state it: importing torch takes seconds."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    match = CUDA.search(Path(spec.origin).with_name("version.py").read_text(encoding="utf-8"))
    return match[1] if match else None


def _store_error(store: StoreConfig, mark: str | None) -> str | None:
    if mark is not None:
        return error_at_node(store, mark)
    try:
        ArtifactStore(store).check()
    except ClusterError as error:
        return str(error)
    return None


def _missing_middlewares() -> str | None:
    """Return the import path of the proxy middlewares that this environment names, if there is no such module."""
    path = os.environ.get(PROXY_CALLBACK)
    if not path:
        return None
    try:
        found = importlib.util.find_spec(path.partition(":")[0])
    except (ImportError, ValueError):
        found = None
    return path if found is None else None


def report_nodes(
    nodes: Sequence[Node],
    folders: Sequence[Path],
    store: StoreConfig | None,
    timeout_s: float,
    mark: str | None = None,
) -> tuple[list[NodeReport], list[UnresponsiveNode]]:
    """Ask every node for its report, all at once and without reserving resources; return those that came in time."""
    probe = ray.remote(num_cpus=0, max_retries=0)(report_here)
    asked_s = time.time()
    asked = {
        probe.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False)).remote(
            node.address, tuple(folders), store, mark
        ): node
        for node in nodes
    }
    reports: list[NodeReport] = []
    silent: list[UnresponsiveNode] = []
    waiting = list(asked)
    deadline = time.monotonic() + timeout_s
    while waiting:
        done, waiting = ray.wait(waiting, timeout=max(0.0, deadline - time.monotonic()))
        if not done:
            break
        found = _received(done[0], asked[done[0]], asked_s)
        if isinstance(found, UnresponsiveNode):
            silent.append(found)
        else:
            reports.append(found)
    for reference in waiting:
        ray.cancel(reference, force=True)
    silent += [UnresponsiveNode(asked[reference].address, f"no answer in {timeout_s:g} s") for reference in waiting]
    return reports, silent


def _received(reference: Any, node: Node, asked_s: float) -> NodeReport | UnresponsiveNode:
    """Return a node's report, with its clock compared to the times of question and answer, or why there is none."""
    try:
        report: NodeReport = ray.get(reference)
    except Exception as error:
        cause = getattr(error, "cause", None) or error
        return UnresponsiveNode(node.address, " ".join(f"{type(cause).__name__}: {cause}".split())[:300])
    heard_s = time.time()
    ahead_s = report.unix_s - heard_s if report.unix_s > heard_s else min(0.0, report.unix_s - asked_s)
    return report._replace(ahead_s=ahead_s)
