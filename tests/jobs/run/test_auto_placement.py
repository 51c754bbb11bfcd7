"""Automatic placement: a GPU for each process that holds the model, as many as there are, and nothing that was set."""

from __future__ import annotations

import io
from typing import Any

import pytest
from pydantic import ValidationError
from rich.console import Console

from cluster.store.artifacts import ArtifactStore
from jobs.run import launch
from jobs.run.auto_placement import keep_workers, settled
from jobs.run.config import RunConfig
from jobs.run.needs import STAGES, placement_problems
from jobs.run.resource_requests import without_gpu
from safety.errors import ConfigError


def make_run(device: str = "cuda", **sections: Any) -> RunConfig:
    document = {"run": {"name": "x", "output": "out/x"}, "model": {"device": device}, **sections}
    return RunConfig.model_validate(document)


def test_a_model_on_a_gpu_has_one_in_every_process() -> None:
    run = make_run(evaluate={"gpus_per_actor": 0.5})
    shares = (run.generate.gpus_per_actor, run.train.gpus_per_worker, run.merge.gpus_per_worker, run.serve.num_gpus)
    assert shares == (1.0,) * 4
    assert run.evaluate.gpus_per_actor == 0.5, "what is set is kept"
    assert not without_gpu(run)


def test_a_model_on_a_cpu_is_placed_as_the_defaults_say() -> None:
    run = make_run("cpu")
    assert run == RunConfig.model_validate({"run": {"name": "x", "output": "out/x"}})
    assert settled(run, {"CPU": 64.0, "GPU": 8.0}) is run


@pytest.mark.parametrize(("gpus", "actors", "workers"), [(1, 1, 1), (4, 4, 1), (8, 8, 1), (16, 16, 2), (40, 40, 2)])
def test_there_are_as_many_processes_as_gpus_and_more_workers_where_some_are_left(
    gpus: int, actors: int, workers: int
) -> None:
    # Seven categories and the expert of all; 10 and 8 rows can be shared by one worker or two.
    run = settled(make_run(), {"CPU": 128.0, "GPU": float(gpus)})
    assert (run.generate.actors, run.merge.workers, run.evaluate.actors) == (actors,) * 3
    assert run.train.workers == workers


def test_workers_can_share_the_steps_of_a_consolidation_too() -> None:
    train = {"expert": {"rows": 12, "benign_rows": 12}}
    run, gpus = make_run(train=train), {"GPU": 32.0}
    both = make_run(train=train, consolidate={"rows": 14, "benign_rows": 20})
    assert settled(run, gpus).train.workers == 4
    assert settled(both, gpus).train.workers == 2
    with pytest.raises(ConfigError, match=r"consolidate: consolidate\.rows is 14, which 4 workers") as refused:
        settled(both, gpus, begun=4)
    assert "multiples of 4" in refused.value.fix
    with pytest.raises(ValidationError, match=r"consolidate\.rows is 14, which 4 workers"):
        make_run(train={**train, "workers": 4}, consolidate={"rows": 14, "benign_rows": 20})


def test_numbers_that_are_set_are_kept() -> None:
    run = settled(
        make_run(generate={"actors": 3}, train={"workers": 1}, evaluate={"gpus_per_actor": 0.5}), {"GPU": 40.0}
    )
    assert (run.generate.actors, run.train.workers, run.evaluate.actors) == (3, 1, 80)
    fixed = make_run(placement="fixed")
    assert settled(fixed, {"GPU": 40.0}) is fixed
    assert fixed.train.gpus_per_worker == 0.0


@pytest.mark.parametrize(
    ("sections", "field"),
    [
        ({"serve": {"num_gpus": 0}}, "serve.num_gpus"),
        ({"train": {"workers": 2, "gpus_per_worker": 0.5}}, "train.gpus_per_worker"),
        ({"placement": "fixed", "generate": {"gpus_per_actor": 1}}, "train.gpus_per_worker, merge"),
        ({"model": {"dtype": "bfloat16"}, "train": {"expert": {"precision": "fp32"}}}, "train.expert.precision"),
    ],
    ids=["serve without a GPU", "two workers on one GPU", "fixed and forgotten", "an arithmetic the weights lack"],
)
def test_what_is_impossible_is_said_before_any_work(sections: dict[str, Any], field: str) -> None:
    model = sections.pop("model", {"device": "cuda"})
    run = RunConfig.model_validate({"run": {"name": "x", "output": "out/x"}, "model": model, **sections})
    [problem] = placement_problems(run, STAGES)
    assert problem.field.startswith(field)
    assert problem.fix


def test_a_possible_placement_has_no_problem() -> None:
    assert not placement_problems(make_run(), STAGES)
    assert not placement_problems(make_run(train={"workers": 1, "gpus_per_worker": 0.5}), STAGES)
    assert not placement_problems(make_run("cpu"), STAGES)
    assert not placement_problems(make_run(serve={"num_gpus": 0}), ("generate", "train"))


def test_a_run_goes_on_with_the_workers_that_its_experts_were_begun_with(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(gpus: int, **train: Any) -> tuple[RunConfig, str]:
        console = Console(record=True, width=300, file=io.StringIO())
        monkeypatch.setattr(launch, "grown_resources", lambda: {"GPU": float(gpus)})
        return launch._placed(console, make_run(train=train), store), console.export_text()

    # A start that begins no expert, such as a generation on a smaller cluster, decides nothing.
    assert start(8)[0].train.workers == 1
    run, said = start(16)
    assert run.train.recipe("x")["workers"] == 2, "of the expert's artifact"
    assert "train.workers: 2 an expert, by the cluster's 16 GPUs" in said
    keep_workers(run, store)
    # A larger cluster, and a smaller one, for which other experts would be trained unnoticed.
    for gpus, words in ((160, "as this run's experts were begun;"), (1, "though the cluster holds 1: an expert")):
        again, said = start(gpus)
        assert again.train.recipe("x") == run.train.recipe("x")
        assert words in said
        assert again.generate.actors == gpus
    # Experts of other settings are new ones.
    assert start(8, expert={"steps": 3})[0].train.workers == 1
    explicit, said = start(16, workers=1)
    assert (explicit.train.workers, said) == (1, "")
    keep_workers(explicit, store)
    assert start(16)[0].train.workers == 1


def test_a_run_on_a_cpu_keeps_nothing(store: ArtifactStore) -> None:
    keep_workers(make_run("cpu"), store)
    assert store.keys("work/") == []
