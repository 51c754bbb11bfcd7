"""Ray's private modules do what the project takes them to do, in the version that is installed.

When one of these fails after a raise of Ray, its message names the place in Ray to look at; ``cluster/ray_private.py`` is
the only module to change. ``TESTED`` is the version for which all of them were seen to hold.
"""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import re
import threading
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.core.generated import autoscaler_pb2

from cluster import ray_private
from cluster import session as session_module
from cluster.ray_private import UV_HOOK
from cluster.session import ClusterConfig, worker_environment
from jobs.run.ray_data import configure_data, within

ROOT = Path(__file__).parent.parent.parent
TESTED = "2.60.0"
USED = {
    "ray._private.auto_init_hook": ("enable_auto_connect", "auto_init_ray"),
    "ray._private.ray_constants": (
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV",
        "env_bool",
        "get_runtime_env_default_excludes",
    ),
    "ray._private.runtime_env.packaging": ("_dir_travel", "_get_excludes"),
    "ray._private.state": ("state",),
    "ray._raylet": ("Config",),
    "ray.data._internal.execution.streaming_executor": ("StreamingExecutor",),
}
PRIVATE = re.compile(r"(^|\.)_[a-z]")


@contextmanager
def look_at(place: str) -> Iterator[None]:
    """Add to a failure what it is about."""
    try:
        yield
    except BaseException as error:
        error.add_note(
            f"Ray is {ray.__version__}, and {TESTED} was tested: look at {place}, then at {ray_private.__file__}"
        )
        raise


def test_ray_is_bounded_by_the_minor_version_that_was_tested() -> None:
    minor = int(TESTED.split(".")[1])
    with look_at("pyproject.toml, and run this module with the new version"):
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        (requirement,) = [one for one in project["dependencies"] if one.startswith("ray[")]
        assert requirement.endswith(f">=2.{minor},<2.{minor + 1}")
        assert importlib.metadata.version("ray").startswith(f"2.{minor}.")


@pytest.mark.parametrize(("module", "name"), [(module, name) for module, names in USED.items() for name in names])
def test_the_names_are_there(module: str, name: str) -> None:
    with look_at(module):
        assert hasattr(importlib.import_module(module), name)


def test_the_authentication_mode_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    with look_at("ray/_private/authentication/authentication_token_setup.py, _enable_token_auth"):
        from ray._raylet import AuthenticationMode, get_authentication_mode

        found = []
        for mode in ("token", "disabled"):
            monkeypatch.setenv("RAY_AUTH_MODE", mode)
            ray_private.reread_environment()
            found.append(get_authentication_mode())
        monkeypatch.undo()
        ray_private.reread_environment()
        assert found == [AuthenticationMode.TOKEN, AuthenticationMode.DISABLED]


def test_under_uv_run_a_sessions_workers_keep_the_drivers_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """As ``ray.init`` asks its hook, with an ancestor that is ``uv run``."""
    with look_at("ray/_private/worker.py, _maybe_modify_runtime_env, and runtime_env/uv_runtime_env_hook.py"):
        from ray._private import worker
        from ray._private.runtime_env import uv_runtime_env_hook

        monkeypatch.setattr(uv_runtime_env_hook, "_get_uv_run_cmdline", lambda: ["uv", "run", "python"])
        monkeypatch.delenv(UV_HOOK, raising=False)
        ray_private.reread_environment()
        monkeypatch.chdir(ROOT)
        changed = worker._maybe_modify_runtime_env(None, False)
        assert changed["py_executable"].startswith("uv run")
        for address in ("local", "auto"):
            environment = worker_environment(ClusterConfig(address=address))
            with session_module._ray_environment(environment):
                assert worker._maybe_modify_runtime_env(None, False) is None
        assert worker._maybe_modify_runtime_env(None, False) == changed, "the session's end left it switched off"


def test_no_cluster_is_started_by_a_call_after_a_session(monkeypatch: pytest.MonkeyPatch) -> None:
    with look_at("ray/_private/auto_init_hook.py"):
        from ray._private import auto_init_hook

        started: list[Any] = []
        monkeypatch.setattr(auto_init_hook.ray, "is_initialized", lambda: False)
        monkeypatch.setattr(auto_init_hook.ray, "init", started.append)
        monkeypatch.setattr(auto_init_hook, "enable_auto_connect", True)
        ray_private.forbid_auto_connect()
        auto_init_hook.auto_init_ray()
        assert started == []


@pytest.mark.ray
@pytest.mark.slow
def test_no_thread_of_a_stream_is_left_to_call_ray_after_its_shutdown(ray_cluster: None) -> None:
    with look_at("ray/data/_internal/execution/streaming_executor.py, StreamingExecutor.shutdown"):

        def slow(row: dict[str, Any]) -> dict[str, Any]:
            time.sleep(0.2)
            return row

        configure_data()
        rows = ray.data.from_items([{"n": n} for n in range(200)], override_num_blocks=200).map(slow, num_cpus=0.5)
        next(found := within(rows.iter_rows(), 60.0, "x"))
        before = {thread.name for thread in threading.enumerate()}
        assert any(name.startswith("StreamingExecutor") for name in before)
        assert ray_private.STREAM_READER in before
        ray_private.end_data_streams()
        after = {thread.name for thread in threading.enumerate()}
        assert not any(name.startswith("StreamingExecutor") for name in after)
        assert ray_private.STREAM_READER not in after
        found.close()


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Attribute | ast.Name):
            text = ast.unparse(node)
            if text.startswith("ray."):
                yield text


def test_node_types_that_a_cluster_s_service_has_reported_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    with look_at("ray/_private/state.py, get_cluster_config"):
        reported = autoscaler_pb2.ClusterConfig()
        for resources, most in (({"CPU": 8, "GPU": 1}, 3), ({"CPU": 4}, 0), ({"CPU": 2}, -1)):
            group = reported.node_group_configs.add(max_count=most)
            group.resources.update(resources)
        assert hasattr(ray_private.state, "get_cluster_config")
        monkeypatch.setattr(ray_private.ray, "is_initialized", lambda: True)
        monkeypatch.setattr(ray_private.state, "get_cluster_config", lambda: reported)
        assert ray_private.reported_node_types() == [({"CPU": 8.0, "GPU": 1.0}, 3), ({"CPU": 2.0}, 10_000)]
        monkeypatch.setattr(ray_private.state, "get_cluster_config", lambda: None)
        assert ray_private.reported_node_types() == []


FAKE_TENSORS = (
    "torch._subclasses.fake_tensor.FakeTensorMode",
    "torch.utils._pytree",
    "torch.utils._python_dispatch.TorchDispatchMode",
)
"""torch's way to run a step without its numbers has no public name; tests/safety/experts/test_memory.py holds it."""


def test_no_other_module_imports_what_is_private() -> None:
    """Of Ray, and of every other library: the tests of the files below hold theirs."""
    ours = [path for room in ("cluster", "jobs", "safety", "serve") for path in (ROOT / room).rglob("*.py")]
    found = {
        (path.relative_to(ROOT).as_posix(), name)
        for path in ours
        for name in imported(path)
        if PRIVATE.search(name) and not name.startswith(("__future__", "cluster.", "jobs.", "safety.", "serve."))
    }
    rays = {name for path, name in found if path == "cluster/ray_private.py"}
    assert {name.rpartition(".")[0] for name in rays} <= USED.keys() | {"ray._private"}
    torchs = {(path, name) for path, name in found if path != "cluster/ray_private.py"}
    assert torchs == {("safety/experts/tracing.py", name) for name in FAKE_TENSORS}
