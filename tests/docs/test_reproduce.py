"""The paper's runs load, and their table of hours is the arithmetic's."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.reproduce import table
from jobs.run.config import load_run
from safety.taxonomy import load_taxonomy

ROOT = Path(__file__).parents[2]
PAGE = "docs/reproduce.md"
MODELS = {"sd15": (512, 0.00016), "sdxl": (1024, 0.00001)}


@pytest.mark.parametrize("name", MODELS)
def test_the_papers_run_loads(name: str) -> None:
    run = load_run(ROOT / "jobs" / "configs" / f"{name}-coprov2.yaml")
    side, rate = MODELS[name]
    assert (run.generate.render.height, run.train.expert.learning_rate) == (side, rate)
    assert (run.train.expert.objective.name, run.train.expert.steps, run.train.expert.lora.rank) == (
        "diffusion-dpo",
        2000,
        4,
    )
    assert run.prompts is not None
    assert [source.source for source in (*run.prompts.pairs, *run.prompts.test)] == ["coprov2", "coprov2"]
    assert run.generate.judge == run.merge.judge == run.evaluate.judge
    assert run.generate.judge.name == "combination"
    assert len(load_taxonomy(ROOT / run.taxonomy).categories) == 7
    assert (run.generate.gpus_per_actor, run.generate.gpus_per_judge) == (0.75, 0.25)


def test_the_table_of_hours_is_the_arithmetics() -> None:
    assert table() in (ROOT / PAGE).read_text(encoding="utf-8")
