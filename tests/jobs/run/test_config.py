"""The committed configs against each other: what one command makes, another must find."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.run.config import RENAMED, load_run
from safety.emoji import ZOO
from safety.emoji.build.world import WorldConfig
from safety.errors import ConfigError

CONFIGS = Path(__file__).parents[3] / "jobs" / "configs"


def test_the_full_report_asks_for_the_demos_own_dataset_experts_and_merges() -> None:
    demo, report = load_run(CONFIGS / "emoji.yaml"), load_run(CONFIGS / "emoji-report.yaml")
    assert (report.store, report.run.seed) == (demo.store, demo.run.seed)
    assert (report.model, report.taxonomy) == (demo.model, demo.taxonomy)
    assert report.generate.recipe() == demo.generate.recipe()
    assert report.train.model_dump() == demo.train.model_dump()
    assert report.merge.model_dump() == demo.merge.model_dump()
    assert report.run.output != demo.run.output
    assert report.evaluate.counts.benign > demo.evaluate.counts.benign


def test_the_measured_recipe_is_the_default() -> None:
    """The demo's YAML says its places and its counts alone; the released figures are of these settings."""
    demo = load_run(CONFIGS / "emoji.yaml")
    expert = demo.train.expert.model_dump()
    assert [
        (each.steps, each.guidance) for each in (demo.generate.render, demo.merge.render, demo.evaluate.render)
    ] == [(6, 2.5)] * 3
    assert (demo.serve.default_steps, demo.serve.default_guidance) == (6, 2.5)
    assert demo.generate.counts.benign_train == 640
    assert demo.train.gate is not None
    assert (demo.train.gate.benign, demo.train.gate.directions) == (3.0, 8)
    assert expert["objective"] == {
        "name": "anchored-dpo",
        "beta": 100.0,
        "anchor_weight": 30.0,
        "benign_weight": 900.0,
    }
    assert expert["lora"] == {"rank": 8, "alpha": 8.0, "targets": ("attn2.to_k", "attn2.to_v")}
    assert {name: expert[name] for name in ("steps", "rows", "benign_rows", "learning_rate", "distinct_batches")} == {
        "steps": 160,
        "rows": 10,
        "benign_rows": 8,
        "learning_rate": 0.015,
        "distinct_batches": 80,
    }
    assert (expert["caption_dropout"], expert["schedule"], expert["warmup"]) == (0.0, "cosine", 10)


def write(folder: Path, **sections: Any) -> Path:
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump({"run": {"name": "x", "output": "out"}, **sections}), encoding="utf-8")
    return path


def test_a_quantised_base_that_shall_be_divided_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"shard_base cannot divide weights of nf4"):
        load_run(write(tmp_path, model={"path": "m", "quantize": "nf4"}, train={"shard_base": True, "workers": 2}))


@pytest.mark.parametrize("old", RENAMED)
def test_a_former_key_says_what_it_is_called_now(old: str, tmp_path: Path) -> None:
    document: dict[str, Any] = {}
    inner = document
    *sections, key = old.split(".")
    for section in sections:
        inner = inner.setdefault(section, {})
    inner[key] = 1
    with pytest.raises(ConfigError) as refused:
        load_run(write(tmp_path, **document))
    assert refused.value.field == old
    assert f"{old}: unknown key" in refused.value.message
    assert refused.value.fix == f"it is called {RENAMED[old]} now"


def test_an_unknown_key_of_a_part_by_name_names_that_parts_keys(tmp_path: Path) -> None:
    objective = {"name": "diffusion-dpo", "anchor_weight": 3}
    with pytest.raises(ConfigError, match="anchor_weight: unknown key") as refused:
        load_run(write(tmp_path, train={"expert": {"objective": objective}}))
    assert refused.value.fix == "remove it, or use one of: name, beta"


def test_a_misspelt_key_of_an_optional_section_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"consolidate\.stepz: unknown key.*did you mean 'steps'\?"):
        load_run(write(tmp_path, consolidate={"stepz": 3}))
    with pytest.raises(ConfigError, match="use one of: benign, ridge, directions"):
        load_run(write(tmp_path, train={"gate": {"something": 3}}))


LINES = {"source": "lines", "path": "a.txt"}


@pytest.mark.parametrize(
    ("pairs", "field", "fix"),
    [
        ([{"source": "pickapick", "path": "a"}], "prompts.pairs.0", "set prompts.pairs.0.source to one of: "),
        ([{"path": "a"}], "prompts.pairs.0", "set prompts.pairs.0.source"),
        (
            [{"source": "csv", "path": "a", "categry": "kind"}],
            "prompts.pairs.0.csv.categry",
            "did you mean 'category'?",
        ),
        (
            [{"source": "csv", "path": "a", "zzz": "kind"}],
            "prompts.pairs.0.csv.zzz",
            "or use one of: source, path, encoding, labels",
        ),
        ([], "prompts", "correct prompts"),
    ],
)
def test_a_wrong_source_is_named_by_its_place(pairs: list[Any], field: str, fix: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        load_run(write(tmp_path, prompts={"pairs": pairs, "benign": [LINES]}))
    assert refused.value.field == field
    assert fix in refused.value.fix


def test_make_serve_shows_the_base_beside_the_aligned_model() -> None:
    assert "base" in load_run(CONFIGS / "emoji.yaml").serve.names


def load_world(name: str) -> WorldConfig:
    return WorldConfig.model_validate(yaml.safe_load((CONFIGS / name).read_text(encoding="utf-8")))


def test_the_continued_world_repeats_how_the_parts_that_it_keeps_were_made() -> None:
    whole, continued = load_world("world.yaml"), load_world("world-continued.yaml")
    retrained = {"unet", "unet_pool", "unet_first_steps", "judge", "steps"}
    assert continued.model_dump(exclude=retrained) == whole.model_dump(exclude=retrained)


def test_the_zoos_settings_are_those_of_the_config_that_made_it_last() -> None:
    written = json.loads((ZOO / "world.json").read_text(encoding="utf-8"))
    assert written == load_world("world-continued.yaml").model_dump(mode="json")


def test_the_runs_judge_is_that_of_each_stage_that_names_none(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    own = {"name": "opennsfw", "settings": {"batch": 4}}
    path.write_text(
        yaml.safe_dump(
            {
                "run": {"name": "x", "output": "out"},
                "judge": own,
                "merge": {"judge": {"name": "q16"}, "workers": 1},
                "evaluate": {"second_judge": {"name": "nudenet"}},
            }
        )
    )
    run = load_run(path)
    assert [run.generate.judge.name, run.merge.judge.name, run.evaluate.judge.name] == ["opennsfw", "q16", "opennsfw"]
    assert run.evaluate.judge.settings == {"batch": 4}
    assert run.evaluate.second_judge is not None
    assert run.serve.judge is None, "an endpoint judges only where it is asked to"
    assert load_run(run.write(tmp_path / "again")) == run


def test_a_second_judge_that_is_the_judge_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    document = {"run": {"name": "x", "output": "out"}, "judge": {"name": "q16"}}
    path.write_text(yaml.safe_dump({**document, "evaluate": {"second_judge": {"name": "q16", "threshold": 0.3}}}))
    with pytest.raises(ConfigError, match="second_judge is the judge itself"):
        load_run(path)
