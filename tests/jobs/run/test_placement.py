"""Loads are placed on workers: by real tasks, and for the GPU overlay by a stand-in whose device exists on workers alone."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
import torch

from cluster.errors import ClusterError, ImpossibleResources
from jobs.evaluate import stage as evaluate
from jobs.generate import stage as generate
from jobs.merge import consolidate
from jobs.release import stage as release
from jobs.run import needs, placement
from jobs.run.artifacts import StageContext
from jobs.run.config import RunConfig, load_run
from jobs.run.needs import STAGES, require_needs
from jobs.run.placement import Place, is_cheap, placed, placed_unless_cheap
from jobs.run.places import evaluate_place, merge_place
from safety.embedded import EMBEDDED_FEATURES
from safety.errors import ConfigError, SafetyError
from safety.families import ModelConfig, Parts, families, load_model
from safety.features.extractor import feature_extractors
from safety.judges import judge as judges
from safety.lora.files import save_lora
from tests.jobs.conftest import ROOT
from tests.support.no_model_here import no_model_here
from tests.support.placed_work import endless, process, refused
from tests.support.small_sets import random_lora

OVERLAY = ROOT / "k8s" / "overlays" / "gpu" / "run.yaml"


def place(device: str = "cpu", timeout_s: float = 60.0, **resources: float) -> Place:
    return Place("a test", device, resources, "x.cpus", "x.gpus", timeout_s, "x.timeout_s", retries=0)


@pytest.mark.ray
def test_work_is_done_by_a_worker_in_time_with_its_resources_or_refused_by_its_setting(ray_cluster: None) -> None:
    assert placed(place(CPU=1.0), process) != os.getpid()
    assert placed_unless_cheap(place(CPU=1.0), process) == os.getpid()
    with pytest.raises(ConfigError, match=r"some\.field: no"):
        placed(place(CPU=1.0), refused)
    with pytest.raises(ImpossibleResources, match=r"x\.cpus, x\.gpus"):
        placed(place(CPU=1.0, GPU=1.0), process)
    with pytest.raises(ConfigError, match=r"x\.gpus: the model is on 'cuda'"):
        placed(place("cuda", CPU=1.0), process)
    with pytest.raises(ClusterError, match=r"x\.timeout_s: a test was not finished in 0\.5 s"):
        placed(place(timeout_s=0.5, CPU=1.0), endless)


@pytest.mark.ray
def test_a_release_is_checked_on_a_worker_and_never_in_the_driver(
    ray_cluster: None, tiny_model_dir: Path, tmp_path: Path
) -> None:
    model = ModelConfig(path=str(tiny_model_dir))
    save_lora(random_lora(load_model(model), 1, ("to_q", "to_v"), size=1.0), tmp_path, metadata={})
    document = {"run": {"name": "x", "output": str(tmp_path)}, "model": {"path": str(tiny_model_dir)}}
    run = RunConfig.model_validate({**document, "release": {"smoke_prompts": ["a knife"]}})
    with no_model_here():
        release.check_adapter(run, tmp_path)
        with pytest.raises(ImpossibleResources, match=r"evaluate\.gpus_per_actor"):
            release.check_adapter(load_run(OVERLAY), tmp_path)


def test_a_judge_is_loaded_by_the_driver_only_where_that_is_the_same_and_cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_cheap(place(CPU=4.0))
    assert not is_cheap(place("cuda", CPU=4.0))
    assert not is_cheap(place(CPU=1.0, GPU=0.5))
    monkeypatch.setattr(placement, "_hosts", lambda: {"10.0.0.1", "10.0.0.2"})
    assert not is_cheap(place(CPU=4.0))


class Workers:
    """Stands in for Ray: a GPU cluster whose tasks run here, and on which alone the device "cuda" exists."""

    def __init__(self) -> None:
        self.working = False
        self.asked: list[tuple[str, float, float]] = []
        self.exceptions = ray.exceptions

    def is_initialized(self) -> bool:
        return True

    def nodes(self) -> list[dict[str, Any]]:
        kinds: tuple[tuple[str, dict[str, float]], ...] = (
            ("head", {"CPU": 2.0}),
            ("gpu", {"CPU": 8.0, "GPU": 1.0}),
        )
        return [{"Alive": True, "NodeManagerAddress": name, "Resources": held} for name, held in kinds]

    def remote(self, work: Callable[..., Any]) -> Workers:
        self.work = work
        return self

    def options(self, **options: Any) -> Workers:
        self.asked.append((self.work.__name__, options["num_cpus"], options["num_gpus"]))
        task = Workers.__new__(Workers)
        task.__dict__ = {"owner": self, "work": self.work}
        task.remote = task.run  # type: ignore[method-assign, assignment]
        return task

    def run(self, *arguments: Any, **named: Any) -> Any:
        owner = self.__dict__["owner"]
        owner.working = True
        try:
            return self.work(*pickle.loads(pickle.dumps(arguments)), **named)
        finally:
            owner.working = False

    def get(self, found: Any, timeout: float) -> Any:
        assert timeout > 0
        return found


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> Workers:
    found = Workers()
    monkeypatch.setattr(placement, "ray", found)
    monkeypatch.setattr("cluster.resources.ray", found)
    real = families["stable-diffusion"].load

    def load(path: Path, *, device: str, dtype: torch.dtype, parts: Parts) -> Any:
        assert (device, found.working) == ("cuda", True), "the driver loads a model"
        return real(path, device="cpu", dtype=dtype, parts=parts)

    def load_judge(*arguments: Any, **named: Any) -> Any:
        assert found.working, "the driver loads a judge"
        return judge(*arguments, **named)

    def load_features(*, device: str = "cpu") -> Any:
        assert found.working, "the driver loads features"
        return features()

    judge, features = judges.load_judge, feature_extractors[EMBEDDED_FEATURES]
    monkeypatch.setattr(judges, "load_judge", load_judge)
    monkeypatch.setattr(needs, "load_judge", load_judge)
    monkeypatch.setitem(feature_extractors._entries, EMBEDDED_FEATURES, load_features)
    monkeypatch.setattr("safety.families.family._require_device", lambda _: None)
    monkeypatch.setattr(families["stable-diffusion"], "load", load)
    return found


def test_the_gpu_overlay_loads_nothing_in_a_driver_without_its_device(
    workers: Workers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(AssertionError, match="the driver loads a model"):
        load_model(ModelConfig(device="cuda"))
    run = load_run(OVERLAY)
    context = StageContext(run, None, tmp_path, None)  # type: ignore[arg-type]
    generate.describe(context, run.load_taxonomy())
    monkeypatch.setattr(evaluate, "_machine", lambda: "")
    evaluate.describe(context, run.load_taxonomy(), {})
    # A model's files are read where it is drawn with; the driver may have none of them.
    assert workers.asked == [
        ("judge_identity", 1.0, 0.0),
        ("model_identity", 2.0, 1.0),
        ("judge_identity", 2.0, 1.0),
        ("features_name", 2.0, 1.0),
    ]
    workers.asked.clear()
    assert run.consolidate is not None
    consolidate._settings(context, run.consolidate)
    assert workers.asked == [("judge_identity", 2.0, 1.0)]
    workers.asked.clear()
    require_needs(run, STAGES)
    assert workers.asked == [("load_problems", 2.0, 1.0), ("load_problems", 1.0, 0.0)]
    workers.asked.clear()
    workers.working = True
    save_lora(random_lora(load_model(ModelConfig(device="cuda")), 1, ("to_q",), size=1.0), tmp_path, metadata={})
    workers.working = False
    release.check_adapter(run, tmp_path)
    assert workers.asked == [("check_images", 2.0, 1.0)]


@pytest.mark.parametrize("find", [evaluate_place, merge_place])
def test_a_model_on_a_gpu_asks_for_one_by_its_setting(find: Callable[[RunConfig], Place], workers: Workers) -> None:
    no_gpus = {"evaluate": {"gpus_per_actor": 0}, "merge": {"gpus_per_worker": 0}}
    run = RunConfig.model_validate({"run": {"name": "x", "output": "out"}, "model": {"device": "cuda"}, **no_gpus})
    with pytest.raises(SafetyError, match=r"gpus_per_(actor|worker): the model is on 'cuda'"):
        placed(find(run), process)
    assert workers.asked == []
