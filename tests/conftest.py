"""Fixtures shared by all tests: a tiny real Stable Diffusion, stores, one S3 server and one local Ray a session."""

from __future__ import annotations

import gc
import secrets
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.session import ClusterConfig, Session, worker_environment
from cluster.store.artifacts import ArtifactStore
from cluster.store.config import StoreConfig
from serve.admission import MIDDLEWARES
from tests.support.s3_server import REGION, Credentials, RunningServer, new_credentials, serve_store

FIXTURE_MARKERS = {"ray_cluster": "ray", "running_cluster": "ray", "s3_server": "s3"}
"""Markers that fixtures imply, so that no test can forget them: ``make test-fast`` deselects by marker."""
TURNS = ("ray", "submit", "serve", "slow", "quick", "load")
"""In what order ``make test`` starts its groups."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--faults-full", action="store_true", help="run the fault tests in their full counts")


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Share the tests out for ``make test``, which runs three processes (pytest-xdist): each waits a good deal.

    What needs Ray takes the longest and goes first, in groups that keep their cluster: jobs on one process; jobs that
    are submitted to a cluster of their own, and then endpoints, on another. (A third cluster costs more than it saves.)
    The rest is shared out by modules, so that their fixtures are made once. Loads, whose answers are timed, go last,
    when the machine is quieter.
    """
    turns = {}
    for item in items:
        for fixture in FIXTURE_MARKERS.keys() & set(getattr(item, "fixturenames", ())):
            item.add_marker(FIXTURE_MARKERS[fixture])
        group = _ray_group(item)
        item.add_marker(pytest.mark.xdist_group(group or item.nodeid.partition("::")[0]))
        turns[item] = TURNS.index(group or ("slow" if item.get_closest_marker("slow") else "quick"))
    items.sort(key=turns.__getitem__)


def _ray_group(item: pytest.Item) -> str | None:
    """Return the group of a test that needs Ray."""
    fixtures = getattr(item, "fixturenames", ())
    if "running_cluster" in fixtures:
        return "submit"
    if item.get_closest_marker("serve") is not None:
        return "load" if item.nodeid.partition("::")[0].endswith("_load.py") else "serve"
    return "ray" if item.get_closest_marker("ray") is not None or "ray_cluster" in fixtures else None


@pytest.fixture(autouse=True)
def ray_only_where_marked(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that starts Ray in this process without the marker, by which ``make test-fast`` leaves it out."""
    ran = _ray_runs()
    yield
    if not ran and _ray_runs() and request.node.get_closest_marker("ray") is None:
        pytest.fail("the test started Ray: mark it with pytest.mark.ray")


def _ray_runs() -> bool:
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a diffusers folder of a real, random Stable Diffusion: 16-pixel images, 4x4 latents, 32 tokens."""
    # Late, for many tests need no diffusers, which takes seconds to import.
    from tests.support.pico_models import build_stable_diffusion

    folder = tmp_path_factory.mktemp("tiny-model")
    build_stable_diffusion(folder)
    return folder


@pytest.fixture(scope="session")
def pico_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function from a name in ``PICO_MODELS`` to that model's folder, which is written once a session."""
    from tests.support.pico_models import PICO_MODELS

    made: dict[str, Path] = {}

    def find(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp(f"pico-{name}")
            PICO_MODELS[name].build(made[name])
        return made[name]

    return find


@pytest.fixture(scope="session")
def s3_credentials() -> Iterator[Credentials]:
    """Put the S3 server's credentials into this process's environment, where a cluster's nodes get theirs."""
    found = new_credentials()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in found.environment().items():
            patch.setenv(name, value)
        yield found


@pytest.fixture(scope="session")
def s3_server(s3_credentials: Credentials, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """Run one real S3 server for the whole session."""
    with serve_store(tmp_path_factory.mktemp("s3"), s3_credentials) as server:
        yield server


def folder_store(folder: Path) -> ArtifactStore:
    """Return a store in a folder, which other processes of this machine can open too."""
    return ArtifactStore(StoreConfig(data_dir=folder))


def fresh_s3_store(server: RunningServer) -> ArtifactStore:
    """Return a store on a prefix of its own, so that tests never see each other's keys."""
    found = ArtifactStore(StoreConfig(endpoint=server.endpoint, prefix=f"test-{secrets.token_hex(4)}", region=REGION))
    found.ensure_bucket()
    return found


def written(store: ArtifactStore, keys: list[str]) -> dict[str, Any]:
    """Return when each object was written last, and its file."""
    found = {}
    for key in keys:
        status = Path(store.url(key)).stat()
        found[key] = (status.st_mtime_ns, status.st_ino)
    return found


@pytest.fixture
def store(tmp_path_factory: pytest.TempPathFactory) -> ArtifactStore:
    """Return an empty artifact store for one test, in a folder."""
    return folder_store(tmp_path_factory.mktemp("store"))


@pytest.fixture
def s3_store(s3_server: RunningServer) -> ArtifactStore:
    """Return an empty artifact store for one test, on the S3 server."""
    return fresh_s3_store(s3_server)


@pytest.fixture(params=["folder", pytest.param("s3", marks=pytest.mark.s3)])
def any_store(request: pytest.FixtureRequest) -> ArtifactStore:
    """Return an empty artifact store of each kind in turn: what one promises the other keeps."""
    found: ArtifactStore = request.getfixturevalue("store" if request.param == "folder" else "s3_store")
    return found


@pytest.fixture(scope="session")
def ray_cluster(s3_credentials: Credentials) -> Iterator[None]:
    """Start one local Ray of two CPUs for the whole session; its workers can use the S3 server and import the code."""
    import ray

    environment = worker_environment(ClusterConfig(num_cpus=2, auth="disabled"), MIDDLEWARES)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)  # the workers inherit it
        ray.init(
            address="local",
            num_cpus=2,
            object_store_memory=256 * 2**20,
            dashboard_host="127.0.0.1",  # "serve deploy" speaks to it
            include_dashboard=True,
            configure_logging=False,
            log_to_driver=False,
        )
        yield
        ray.shutdown()


@pytest.fixture(scope="module")
def session(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    """Yield what ``cluster.session.connect`` gives a job, over the test session's Ray and an empty store a module."""
    yield Session(folder_store(tmp_path_factory.mktemp("store")), None)
    # A stream that ended by an error keeps its actors in a reference cycle, and with them CPUs that the next module needs.
    gc.collect()
