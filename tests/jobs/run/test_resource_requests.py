"""A run's requests of the cluster, as the preflight checks them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cluster.preflight.checks import ResourceRequest
from jobs.run.config import RunConfig
from jobs.run.resource_requests import gpu_settings, resource_requests, without_gpu


def run_of(**sections: Any) -> RunConfig:
    return RunConfig.model_validate({"run": {"name": "x", "output": Path("out")}, **sections})


def request(run: RunConfig, what: str) -> ResourceRequest:
    [found] = [each for each in resource_requests(run) if each.what.startswith(what)]
    return found


def test_an_expert_needs_all_its_workers_unless_it_may_start_with_fewer() -> None:
    expert = {"rows": 12, "benign_rows": 12}
    fixed = request(run_of(train={"workers": 4, "expert": expert}), "train")
    elastic = request(run_of(train={"workers": 4, "min_workers": 2, "expert": expert}), "train")
    assert (fixed.least, fixed.wanted) == (4, 4)
    assert (elastic.least, elastic.wanted) == (2, 4)


def test_who_holds_the_model_needs_a_gpu_when_it_is_on_one() -> None:
    on_gpu = run_of(
        model={"device": "cuda"}, placement="fixed", train={"gpus_per_worker": 0.5}, generate={"gpus_per_judge": 0.1}
    )
    lacking = ["generate.gpus_per_actor", "merge.gpus_per_worker", "evaluate.gpus_per_actor", "serve.num_gpus"]
    assert without_gpu(on_gpu) == lacking
    assert gpu_settings(on_gpu) == ["model.device", "train.gpus_per_worker", "generate.gpus_per_judge"]
    assert without_gpu(run_of()) == gpu_settings(run_of()) == []
