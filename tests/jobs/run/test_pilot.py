"""A run's pilot: smaller in everything that costs, the same in what decides, and apart in everything that has a name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.run.config import RunConfig, load_run
from jobs.run.pilot import LEAST_STEPS, MOST_STEPS, NAME_LENGTH, PAIRS, pilot_name, pilot_of, pilot_steps
from safety.presets.preset import preset_names

ROOT = Path(__file__).parents[3]


def run_of(**parts: Any) -> RunConfig:
    return RunConfig.model_validate({"run": {"name": "x", "output": "out"}, **parts})


@pytest.mark.parametrize("config", sorted((ROOT / "jobs/configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_pilot_of_each_shipped_run_is_a_valid_run(config: Path) -> None:
    if config.stem.startswith("world"):
        pytest.skip("the embedded world's own jobs")
    run = load_run(config)
    pilot = pilot_of(run)
    assert RunConfig.model_validate(pilot.model_dump()) == pilot
    assert pilot.generate.counts.train == min(PAIRS, run.generate.counts.train)
    assert pilot.train.expert.steps <= run.train.expert.steps


@pytest.mark.parametrize("name", preset_names())
def test_the_pilot_of_each_preset_is_a_valid_run(name: str, tmp_path: Path) -> None:
    judge = {"name": "my_world:load_judge"}
    document = {
        "extends": name,
        "run": {"name": "mine", "output": str(tmp_path)},
        "model": {"path": "models/mine"},
        "taxonomy": "mine.yaml",
        "generate": {"writer": "my_world:Prompts", "judge": judge},
        "merge": {"judge": judge},
        "evaluate": {"judge": judge},
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    run = load_run(path)
    pilot = pilot_of(run)
    assert RunConfig.model_validate(pilot.model_dump()) == pilot
    steps = run.train.expert.steps
    assert min(steps, LEAST_STEPS) <= pilot.train.expert.steps <= min(steps, MOST_STEPS)
    assert pilot.train.expert.warmup < pilot.train.expert.steps
    assert pilot.train.expert.learning_rate == run.train.expert.learning_rate


def test_it_shares_no_name_folder_or_pointer_with_its_run() -> None:
    run = run_of(release={"signing_key": "key.pem"}, serve={"models": ["mild"], "trusted_keys": ["key.pub.pem"]})
    pilot = pilot_of(run)
    assert pilot.run.name == "x-pilot"
    assert pilot.run.output == run.run.output / "pilot"
    assert pilot.release.pointer == pilot.serve.pointer == "aligned-pilot"
    assert pilot.serve.models == ()
    assert pilot.release.signing_key is None, "an endpoint that trusts the key would load the pilot's release"
    assert pilot.store == run.store
    assert pilot.generate.recipe() != run.generate.recipe()
    assert pilot.train.recipe("violence") != run.train.recipe("violence")
    assert pilot.run.seed == run.run.seed


def test_what_decides_whether_a_run_works_stays() -> None:
    run = run_of()
    pilot = pilot_of(run)
    assert (pilot.model, pilot.taxonomy, pilot.cluster) == (run.model, run.taxonomy, run.cluster)
    assert pilot.generate.model_copy(update={"counts": run.generate.counts, "most": None}) == run.generate
    own, other = (each.model_dump() for each in (run.train.expert, pilot.train.expert))
    assert {name for name in own if own[name] != other[name]} <= {
        *("steps", "warmup", "distinct_batches", "validate_every"),
    }
    assert pilot.evaluate.model_copy(update={"counts": run.evaluate.counts}) == run.evaluate


def test_a_run_smaller_than_a_pilot_keeps_its_counts() -> None:
    run = load_run(ROOT / "jobs/configs/pico.yaml")
    pilot = pilot_of(run)
    assert pilot.generate.counts == run.generate.counts
    assert pilot.train.expert.steps == run.train.expert.steps
    assert pilot.merge.search == run.merge.search


def test_a_pair_is_seen_as_often_as_in_the_run_within_bounds() -> None:
    assert pilot_steps(1000, 200, 20) == 100
    assert pilot_steps(160, 100, 20) == LEAST_STEPS
    assert pilot_steps(2000, 100, 20) == MOST_STEPS
    assert pilot_steps(4, 100, 20) == 4


def test_names_stay_within_their_length_and_apart() -> None:
    long, other = "a" * NAME_LENGTH, "a" * (NAME_LENGTH - 1) + "b"
    assert len(pilot_name(long)) == NAME_LENGTH
    assert pilot_name(long) != pilot_name(other)
    assert pilot_of(run_of(run={"name": long, "output": "out"})).run.name == pilot_name(long)
