"""``extends:`` in a run's YAML: what is merged, what is refused, and the presets against a run's own config."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.run.config import RunConfig, load_run
from safety.errors import ConfigError
from safety.objectives.diffusion_dpo import DiffusionDpoConfig
from safety.presets.preset import FOLDER, merged, preset_names, read_extended
from serve.config import load_config

JUDGE = {"judge": {"name": "mine:load"}}
OWN: dict[str, Any] = {
    "run": {"name": "mine", "output": "out"},
    "model": {"path": "models/mine"},
    "taxonomy": "taxonomy.yaml",
    "generate": {**JUDGE, "writer": "mine:Writer"},
    "merge": JUDGE,
    "evaluate": JUDGE,
}
RENDERS = {
    "sd15": (512, 30, 7.5),
    "sd15-paper": (512, 30, 7.5),
    "sd21": (768, 30, 7.5),
    "sdxl": (1024, 30, 6.0),
    "sdxl-paper": (1024, 30, 6.0),
    "sd3": (1024, 28, 7.0),
    "flux": (1024, 28, 3.5),
}


def write(folder: Path, document: dict[str, Any], name: str = "run.yaml") -> Path:
    path = folder / name
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    return path


def test_every_preset_is_expected_here() -> None:
    assert preset_names() == sorted(RENDERS)


@pytest.mark.parametrize("preset", RENDERS)
def test_a_dozen_lines_on_a_preset_make_a_run(preset: str, tmp_path: Path) -> None:
    run = load_run(write(tmp_path, {**OWN, "extends": preset}))
    size, steps, guidance = RENDERS[preset]
    for render in (run.generate.render, run.merge.render, run.evaluate.render):
        assert (render.height, render.width, render.steps, render.guidance) == (size, size, steps, guidance)
    assert (run.serve.default_steps, run.serve.default_guidance) == (steps, guidance)
    assert run.model.path == "models/mine"
    assert {run.generate.judge.name, run.merge.judge.name, run.evaluate.judge.name} == {"mine:load"}
    assert run.generate.writer == "mine:Writer"
    assert run.evaluate.goals.merged_ip is None
    assert run.evaluate.goals.ip_fall is not None
    assert run.evaluate.features is None, "the embedded ones know emoji alone, and are refused on another model"
    # The endpoint reads the same file.
    assert load_config(write(tmp_path, {**OWN, "extends": preset})).serve == run.serve


@pytest.mark.parametrize(("preset", "rate"), [("sd15-paper", 1.6e-4), ("sdxl-paper", 1e-5)])
def test_the_published_hyper_parameters_are_those_of_the_authors_launchers(
    preset: str, rate: float, tmp_path: Path
) -> None:
    """As shared/method.md has them: rank 4, alpha = rank, every attention's projections, 2,000 steps of 4 x 4 rows..."""
    run = load_run(write(tmp_path, {**OWN, "extends": preset}))
    expert = run.train.expert
    assert expert.objective == DiffusionDpoConfig(beta=5000.0)
    assert (expert.lora.rank, expert.lora.alpha, expert.lora.targets) == (4, 4.0, None)
    assert (expert.steps, expert.rows, expert.accumulation, expert.benign_rows) == (2000, 16, 4, 0)
    assert (expert.learning_rate, expert.schedule, expert.warmup) == (rate, "constant", 500)
    assert (expert.caption_dropout, expert.timesteps, expert.distinct_batches) == (0.2, (0.0, 1.0), None)
    assert (run.train.gate, run.consolidate) == (None, None)
    merge = run.merge
    assert (merge.co_merge.granularity, merge.co_merge.score, merge.co_merge.selection) == ("row", "vote", "hard")
    assert merge.search.trials == 1, "its first trial is the merge that it starts from"


REQUIRED = [
    "model.path",
    "taxonomy",
    "prompts or generate.writer",
    "judge.name or generate.judge.name",
    "judge.name or merge.judge.name",
    "judge.name or evaluate.judge.name",
]


@pytest.mark.parametrize("key", REQUIRED)
def test_what_a_preset_cannot_know_is_asked_for_by_its_key(key: str, tmp_path: Path) -> None:
    own = json.loads(json.dumps(OWN))
    section, _, inner = key.rpartition(" or ")[2].partition(".")
    if inner:
        del own[section][inner.partition(".")[0]]
    else:
        del own[section]
    with pytest.raises(ConfigError) as refused:
        load_run(write(tmp_path, {**own, "extends": "sd15"}))
    assert refused.value.field == key
    assert f"the preset sd15 leaves {key} to the run" in refused.value.message
    assert refused.value.fix.startswith("name ")


def test_all_that_is_missing_is_asked_for_at_once(tmp_path: Path) -> None:
    write(tmp_path, {"extends": "sdxl"}, "house.yaml")
    for extended in ("sdxl", "house.yaml"):
        with pytest.raises(ConfigError) as refused:
            load_run(write(tmp_path, {"run": OWN["run"], "extends": extended}))
        assert refused.value.field == ", ".join(REQUIRED)
        assert "the preset sdxl leaves model.path" in refused.value.message


def test_a_shipped_preset_is_the_same_by_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(FOLDER.parent)
    by_path = load_run(write(tmp_path, {**OWN, "extends": os.path.relpath(FOLDER / "sd15.yaml", tmp_path)}))
    assert by_path == load_run(write(tmp_path, {**OWN, "extends": "sd15"}))
    with pytest.raises(ConfigError, match=r"presets/sd15.yaml: the preset sd15 leaves model.path"):
        load_run(Path("presets/sd15.yaml"))


def test_the_name_of_a_run_or_release_is_of_no_kind(tmp_path: Path) -> None:
    """Another name there replaces a name, and not the section."""
    below = {"run": {"name": "house", "output": "out", "seed": 7}, "release": {"name": "house", "licence": "mit"}}
    write(tmp_path, below, "house.yaml")
    above = {"extends": "house.yaml", "run": {"name": "mine"}, "release": {"name": "mine"}}
    run = load_run(write(tmp_path, above))
    assert (run.run.name, run.run.seed, run.release.name, run.release.licence) == ("mine", 7, "mine", "mit")


def test_the_filled_in_config_extends_nothing_and_reads_back_equal(tmp_path: Path) -> None:
    run = load_run(write(tmp_path, {**OWN, "extends": "sd21"}))
    path = run.write(tmp_path / "out")
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert not {"extends", "requires"} & document.keys()
    assert document["generate"]["render"]["height"] == 768
    assert load_run(path) == run


def test_the_users_own_keys_win_and_mappings_are_merged(tmp_path: Path) -> None:
    own = {**OWN, "extends": "sd15", "generate": {**OWN["generate"], "render": {"steps": 50}}, "consolidate": None}
    run = load_run(write(tmp_path, own))
    assert (run.generate.render.steps, run.generate.render.guidance) == (50, 7.5)
    assert run.consolidate is None


def test_another_kind_of_a_named_part_replaces_the_whole() -> None:
    below = {"objective": {"name": "anchored-dpo", "beta": 5000, "anchor_weight": 3}, "rows": 4}
    assert merged(below, {"objective": {"name": "diffusion-dpo"}}) == {
        "objective": {"name": "diffusion-dpo"},
        "rows": 4,
    }
    assert merged(below, {"objective": {"beta": 1}})["objective"] == {
        "name": "anchored-dpo",
        "beta": 1,
        "anchor_weight": 3,
    }
    assert merged(below, {"rows": None})["rows"] is None
    assert merged({"list": [1, 2]}, {"list": [3]}) == {"list": [3]}


def test_a_file_beside_the_run_may_be_extended(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    write(tmp_path / "shared", {"extends": "sd15", "model": {"path": "models/mine"}}, "house.yaml")
    own = {name: value for name, value in OWN.items() if name != "model"}
    run = load_run(write(tmp_path, {**own, "extends": "shared/house.yaml"}))
    assert run.model.path == "models/mine"
    assert run.generate.render.height == 512


def test_unknown_presets_cycles_and_wrong_files_are_known_errors(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"extends: .*no preset 'sd14'.*use one of: flux, sd15, sd15-paper"
    ) as refused:
        load_run(write(tmp_path, {**OWN, "extends": "sd14"}))
    assert refused.value.field == "extends"
    for odd in (["sd15"], 3, "_base", None):
        with pytest.raises(ConfigError, match="there is no preset"):
            load_run(write(tmp_path, {**OWN, "extends": odd}))
    with pytest.raises(ConfigError, match="no file"):
        load_run(write(tmp_path, {**OWN, "extends": "lost.yaml"}))
    write(tmp_path, {"extends": "b.yaml"}, "a.yaml")
    write(tmp_path, {"extends": "./a.yaml"}, "b.yaml")
    with pytest.raises(ConfigError, match=r"it extends itself \(run\.yaml -> a\.yaml -> b\.yaml -> a\.yaml\)"):
        load_run(write(tmp_path, {**OWN, "extends": "a.yaml"}))
    with pytest.raises(ConfigError, match="for presets alone"):
        load_run(write(tmp_path, {**OWN, "requires": {}}))


def test_a_file_that_extends_nothing_is_read_as_it_is(tmp_path: Path) -> None:
    assert read_extended(write(tmp_path, OWN), field="--config", what="a run's YAML") == OWN
    assert RunConfig.model_validate(OWN).model.path == "models/mine"
