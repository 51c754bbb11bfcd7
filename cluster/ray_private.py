"""All that the project uses of Ray's private modules: Ray has no public way to do these things.

Any minor version may change them, so pyproject.toml bounds Ray by the minor that was tested.
``tests/cluster/test_ray_private.py`` names that version, and what to look at when another one fails.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import ray
from ray._private import auto_init_hook, ray_constants
from ray._private.runtime_env.packaging import _dir_travel, _get_excludes
from ray._private.state import state
from ray._raylet import Config as RayEnvironment  # type: ignore[attr-defined]

UV_HOOK = "RAY_ENABLE_UV_RUN_RUNTIME_ENV"
"""The variable that has Ray give its workers an environment of their own when the driver runs under ``uv run``."""

STREAM_READER = "data-stream-reader"
"""The name of threads that read a stream of Ray Data."""
READER_END_S = 5.0
UNLIMITED = 10_000
"""The number of nodes of a kind of which a cluster's service names no limit: places on them are counted one by one."""


def reread_environment() -> None:
    """Make Ray read variables again that it reads once, at its import.

    ``RAY_AUTH_MODE``: a process that sets it later would disagree with its cluster. Ray itself does the same
    (authentication_token_setup.py). ``UV_HOOK``: whether it holds would depend on what imported Ray first.
    """
    RayEnvironment.initialize("")
    ray_constants.RAY_ENABLE_UV_RUN_RUNTIME_ENV = ray_constants.env_bool(UV_HOOK, True)


def forbid_auto_connect() -> None:
    """Keep threads that outlive a session from starting a cluster: their next call to Ray would do it.

    ``RAY_ENABLE_AUTO_CONNECT``, the variable for this, is read only once, at the import, and holds before the session
    too.
    """
    auto_init_hook.enable_auto_connect = False


def end_data_streams() -> None:
    """End the streams of Ray Data that a stop or an error left running, and wait for the threads that read them.

    Their threads would call Ray after its shutdown, at which Ray ends the whole process with code 1, whatever code and last
    line it was about to end with. Ray itself ends a stream when its iterator is collected, which may be after that.
    """
    if "ray.data" not in sys.modules:
        return
    # Slow to import, and not for processes without streams.
    from ray.data._internal.execution.streaming_executor import StreamingExecutor

    for thread in threading.enumerate():
        if isinstance(thread, StreamingExecutor):
            thread.shutdown(force=True)
    for thread in threading.enumerate():
        if thread.name == STREAM_READER and thread is not threading.current_thread():
            thread.join(READER_END_S)


def uploaded_files(root: Path, excludes: Sequence[str]) -> list[Path]:
    """Return the files that ``ray job submit`` uploads from ``root``, by Ray's own walk and its own default excludes."""
    found: list[Path] = []
    skip = _get_excludes(root, [*ray_constants.get_runtime_env_default_excludes(), *excludes])
    quiet = logging.getLogger(__name__)
    quiet.setLevel(logging.WARNING)
    _dir_travel(root, [skip], found.append, include_gitignore=True, logger=quiet)
    return [path for path in found if path.is_file()]


def reported_node_types() -> list[tuple[dict[str, float], int]]:
    """Return the resources and the largest number of each kind of node that the connected cluster's service has reported.

    Ray Data plans with the same report (``get_max_resources_from_cluster_config``). Most clusters give none.
    """
    if not ray.is_initialized():
        return []
    config = state.get_cluster_config()
    groups = [] if config is None else config.node_group_configs
    most = [UNLIMITED if group.max_count == -1 else int(group.max_count) for group in groups]
    return [(dict(group.resources), count) for group, count in zip(groups, most, strict=True) if count]
