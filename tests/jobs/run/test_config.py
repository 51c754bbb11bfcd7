"""The committed configs against each other: what one command makes, another must find."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from jobs.run.config import load_run
from safety.emoji import ZOO
from safety.emoji.build.world import WorldConfig

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


def test_make_serve_shows_the_base_beside_the_aligned_model() -> None:
    assert "base" in load_run(CONFIGS / "emoji.yaml").serve.names


def load_world(name: str) -> WorldConfig:
    return WorldConfig.model_validate(yaml.safe_load((CONFIGS / name).read_text(encoding="utf-8")))


def test_the_continued_world_repeats_how_the_parts_that_it_keeps_were_made() -> None:
    whole, continued = load_world("world.yaml"), load_world("world-continued.yaml")
    retrained = {"unet", "unet_pool", "unet_first_steps", "judge", "steps"}
    assert continued.model_dump(exclude=retrained) == whole.model_dump(exclude=retrained)


def test_the_zoos_settings_are_those_of_the_config_that_made_it_last() -> None:
    told = json.loads((ZOO / "world.json").read_text(encoding="utf-8"))
    assert told == load_world("world-continued.yaml").model_dump(mode="json")
