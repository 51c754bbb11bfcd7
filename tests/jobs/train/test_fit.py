"""What a fit hands down to the processes that Ray Train starts for it."""

from __future__ import annotations

import os

import pytest
import ray

from jobs.train.fit import own_cluster


@ray.remote(num_cpus=0)
class Helper:
    def address(self) -> str | None:
        return os.environ.get("RAY_ADDRESS")


@ray.remote(num_cpus=0)
def ask_helper() -> str | None:
    """Start an actor as Ray Train starts its cleaner, and return the cluster that it would ask."""
    found: str | None = ray.get(
        Helper.options(lifetime="detached", name="helper", namespace="test").remote().address.remote()
    )
    ray.kill(ray.get_actor("helper", namespace="test"))
    return found


@pytest.mark.ray
def test_a_helper_of_a_fit_asks_its_own_cluster(ray_cluster: None) -> None:
    asked = ray.get(ask_helper.options(runtime_env={"env_vars": own_cluster()}).remote(), timeout=60)
    assert asked == ray.get_runtime_context().gcs_address
