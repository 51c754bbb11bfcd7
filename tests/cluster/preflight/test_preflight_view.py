"""The checks of a view, on reports of this machine and on such as other machines would give."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import time
from pathlib import Path

import pytest
import ray

from cluster.errors import ClusterError
from cluster.preflight import checks as checks_module
from cluster.preflight import node as node_module
from cluster.preflight.check import Finding, Status
from cluster.preflight.checks import (
    check_clocks,
    check_disks,
    check_gpus,
    check_loopback,
    check_nodes,
    check_proxy_middlewares,
    check_store_from_nodes,
    check_versions,
)
from cluster.preflight.node import (
    ClusterView,
    Node,
    NodeReport,
    UnresponsiveNode,
    machine_view,
    report_here,
    report_nodes,
    running_view,
)
from cluster.session import PROXY_CALLBACK, ClusterConfig, connect
from cluster.store.artifacts import ArtifactStore
from cluster.store.config import StoreConfig
from serve.admission import MIDDLEWARES

GIB = 2**30


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> NodeReport:
    return report_here("this machine", [tmp_path_factory.mktemp("x") / "not" / "made" / "yet"], None)


def other(driver: NodeReport, **changes: object) -> NodeReport:
    return driver._replace(node="10.0.0.2", **changes)  # type: ignore[arg-type]


def test_a_report_is_of_this_machine(driver: NodeReport) -> None:
    assert driver.versions["python"] == platform.python_version()
    assert driver.versions["ray"] == ray.__version__
    assert driver.versions["torch"] == importlib.metadata.version("torch").partition("+")[0]
    assert abs(driver.unix_s - time.time()) < 60
    free = shutil.disk_usage("/tmp").free
    assert all(abs(disk.free - free) < GIB for disk in driver.disks[:1])
    assert len(driver.disks) == 2
    import torch

    assert (driver.torch_cuda is None) == (torch.version.cuda is None)


def test_a_node_with_another_version_fails_and_is_named(driver: NodeReport) -> None:
    assert check_versions([driver, other(driver)]).status is Status.PASS
    found = check_versions([driver, other(driver, versions={**driver.versions, "ray": "2.59.0", "torch": "2.6.0"})])
    assert found.status is Status.FAIL
    torch = driver.versions["torch"]
    assert found.found == f"10.0.0.2 has ray 2.59.0 (driver: {ray.__version__}), torch 2.6.0 (driver: {torch})"
    lacking = driver._replace(versions={**driver.versions, "peft": "missing"})
    assert check_versions([lacking]).found == "this machine lacks peft"


@pytest.mark.parametrize(
    ("ahead_s", "status", "said"),
    [(0.0, "pass", ""), (-5.0, "warn", "10.0.0.2 is 5 s behind"), (400.0, "fail", "10.0.0.2 is 400 s ahead")],
)
def test_a_clock_that_differs_is_reported(
    driver: NodeReport, store: ArtifactStore, ahead_s: float, status: str, said: str
) -> None:
    found = check_clocks([driver, other(driver, ahead_s=ahead_s)], store)
    assert str(found.status) == status
    assert said in found.found


def test_the_stores_clock_is_compared_too(
    driver: NodeReport, any_store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = any_store
    assert abs(store.clock_ahead_s()) < 2
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() - 100)
    found = check_clocks([driver], store)
    assert found.status is Status.FAIL
    assert found.found in ("the store is 100 s ahead", "the store is 99 s ahead", "the store is 101 s ahead")


def test_a_full_disk_warns_and_fails_by_the_limits(driver: NodeReport, monkeypatch: pytest.MonkeyPatch) -> None:
    def found(fail_gib: float, warn_gib: float) -> Finding:
        monkeypatch.setattr(checks_module, "DISK_FAIL_GIB", fail_gib)
        monkeypatch.setattr(checks_module, "DISK_WARN_GIB", warn_gib)
        return check_disks([driver])

    free = min(disk.free for disk in driver.disks) / GIB
    monkeypatch.setattr(checks_module, "DISK_WARN_USED", 1.0)
    assert found(0, 0).status is Status.PASS
    assert found(0, free + 1000).status is Status.WARN
    failed = found(free + 1000, free + 2000)
    assert failed.status is Status.FAIL
    assert "GiB free" in failed.found


@pytest.mark.parametrize(
    ("gpus", "report", "status", "said"),
    [
        (0.0, {}, "fail", "model.device ask(s) for a GPU, and no node has one"),
        (1.0, {"torch_cuda": None}, "fail", "10.0.0.2: torch is a CPU build"),
        (1.0, {"torch_cuda": "13.0", "nvidia": 0}, "warn", "no /dev/nvidia"),
        (2.0, {"torch_cuda": "13.0", "nvidia": 2}, "pass", "2 on 1 node(s)"),
    ],
)
def test_gpus_are_there_when_they_are_asked_for(
    driver: NodeReport, gpus: float, report: dict[str, object], status: str, said: str
) -> None:
    view = ClusterView([Node("a", "10.0.0.2", {"CPU": 4.0, "GPU": gpus})], [driver, other(driver, **report)], [])
    found = check_gpus(view, ["model.device"])
    assert (str(found.status), said in found.found) == (status, True)
    assert check_gpus(view, []).status is Status.PASS


def test_a_node_without_the_code_is_reported_with_the_fix(driver: NodeReport) -> None:
    silent = UnresponsiveNode("10.0.0.3", "ModuleNotFoundError: No module named 'cluster'")
    found = check_nodes(ClusterView([], [driver], [silent]))
    assert found.status is Status.FAIL
    assert "ray job submit" in found.fix


@pytest.mark.parametrize(("path", "missing"), [("serve.door:middlewares", True), (MIDDLEWARES, False), ("", False)])
def test_middlewares_that_a_node_cannot_import_fail_with_their_new_name(
    driver: NodeReport, monkeypatch: pytest.MonkeyPatch, path: str, missing: bool
) -> None:
    monkeypatch.setenv(PROXY_CALLBACK, path)
    report = report_here("10.0.0.2", [], None)
    found = check_proxy_middlewares([driver, report], MIDDLEWARES)
    assert found.status is (Status.FAIL if missing else Status.PASS)
    assert (f"{PROXY_CALLBACK}={MIDDLEWARES}" in found.fix) == missing


def test_a_local_cluster_is_checked_before_it_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nvidia0").touch()
    monkeypatch.setattr(node_module, "DEVICES", tmp_path)
    view = machine_view(ClusterConfig(num_cpus=3), tmp_path)
    assert view.nodes[0].resources == {"CPU": 3.0, "GPU": 1.0}
    assert machine_view(ClusterConfig(num_gpus=0), tmp_path).nodes[0].resources["GPU"] == 0.0


@pytest.mark.ray
def test_every_node_of_a_running_cluster_reports(
    ray_cluster: None, store: ArtifactStore, s3_store: ArtifactStore, tmp_path: Path
) -> None:
    view = running_view(tmp_path, store.config, 60.0)
    assert [node.resources["CPU"] for node in view.nodes] == [2.0]
    assert view.silent == []
    mine, node = view.reports
    assert node.node == view.nodes[0].address
    assert check_versions([mine, node]).status is Status.PASS
    assert check_clocks([mine, node], store).status is Status.PASS
    assert check_store_from_nodes([mine, node]).status is Status.PASS

    assert store.keys("") == [], "no mark is left"

    missing = running_view(tmp_path, s3_store.config.model_copy(update={"bucket": "not-there"}), 60.0)
    found = check_store_from_nodes(missing.reports)
    assert found.status is Status.FAIL
    assert "no bucket 'not-there'" in found.found


@pytest.mark.ray
def test_a_folder_that_a_node_does_not_share_fails(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder is named by a path that is another one in each process, as it may be on each machine."""
    monkeypatch.chdir(tmp_path)
    store = StoreConfig(data_dir=Path("/proc/self/cwd/store"))
    ArtifactStore(store).check()
    found = check_store_from_nodes(running_view(tmp_path, store, 60.0).reports)
    assert found.status is Status.FAIL
    assert "is another folder there than on the driver's machine" in found.found
    with pytest.raises(
        ClusterError, match=r"store\.endpoint: .*is another folder there.*name in store\.endpoint an S3"
    ):
        with connect(ClusterConfig(), store):
            pytest.fail("it connected")
    assert ArtifactStore(store).keys("") == [], "no mark is left"


@pytest.mark.ray
def test_a_node_that_is_gone_or_slow_is_silent(ray_cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = Node("0" * 56, "10.0.0.9", {})
    reports, silent = report_nodes([gone], [], None, 60.0)
    assert reports == []
    assert silent[0].node == "10.0.0.9"
    here = Node(ray.nodes()[0]["NodeID"], "10.0.0.1", {})
    started = time.monotonic()
    reports, silent = report_nodes([here], [], None, 0.0)
    assert time.monotonic() - started < 10
    assert silent == [UnresponsiveNode("10.0.0.1", "no answer in 0 s")]


@pytest.mark.parametrize(
    ("node_s", "asked_s", "heard_s", "ahead_s"), [(10, 8, 12, 0.0), (20, 8, 12, 8.0), (3, 8, 12, -5.0)]
)
def test_a_clock_is_ahead_only_where_the_time_of_asking_leaves_no_doubt(
    driver: NodeReport,
    monkeypatch: pytest.MonkeyPatch,
    node_s: float,
    asked_s: float,
    heard_s: float,
    ahead_s: float,
) -> None:
    monkeypatch.setattr(node_module.ray, "get", lambda _: driver._replace(unix_s=node_s))
    monkeypatch.setattr(node_module.time, "time", lambda: heard_s)
    report = node_module._received(None, Node("a", "b", {}), asked_s)
    assert isinstance(report, NodeReport)
    assert report.ahead_s == ahead_s


@pytest.mark.parametrize("folder", ["/proc/sys/out", "/etc/passwd/out"])
def test_a_folder_in_which_no_file_can_be_made_fails(folder: str) -> None:
    found = check_disks([report_here("this machine", [Path(folder)], None)])
    assert found.status is Status.FAIL
    assert f"{folder} cannot be written (" in found.found
    assert "run.output" in found.fix


def test_a_node_that_does_not_reach_its_own_loopback_fails(driver: NodeReport) -> None:
    silent = other(driver, loopback_fault="a request to http://127.0.0.1:1/ does not arrive (refused)")
    found = check_nodes(ClusterView([Node("a", "10.0.0.2", {})], [driver, silent], []))
    assert found.status is Status.FAIL
    assert "10.0.0.2: a request to http://127.0.0.1:1/ does not arrive" in found.found
    assert "no_proxy" in found.fix
    assert check_loopback([driver]).status is Status.PASS
