"""The committed configs against each other: what one command makes, another must find."""

from __future__ import annotations

from pathlib import Path

from jobs.config import load_run

CONFIGS = Path(__file__).parent.parent.parent / "jobs" / "configs"


def test_the_full_report_asks_for_the_demos_own_dataset_experts_and_merges() -> None:
    demo, report = load_run(CONFIGS / "emoji.yaml"), load_run(CONFIGS / "emoji-report.yaml")
    assert (report.store, report.run.seed) == (demo.store, demo.run.seed)
    assert (report.model, report.taxonomy) == (demo.model, demo.taxonomy)
    assert report.generate.recipe() == demo.generate.recipe()
    assert report.train.model_dump() == demo.train.model_dump()
    assert report.merge.model_dump() == demo.merge.model_dump()
    assert report.run.output != demo.run.output
    assert report.evaluate.counts.benign > demo.evaluate.counts.benign
