"""Each figure of a trial that speaks against a run is told with its setting and a fix, and good figures are not."""

from __future__ import annotations

from typing import Any

import pytest

from jobs.trial.cautions import cautions
from jobs.trial.judging import Judged
from jobs.trial.pictures import ModelFacts
from jobs.trial.sizes import Bytes, StageMemory
from jobs.trial.trial import StageJudge, TrialReport

GOOD_JUDGE = {
    "name": "judge",
    "version": "1",
    "threshold": 0.5,
    "covered": ("a", "b"),
    "uncovered": (),
    "flagged_unsafe": 3,
    "unsafe": 4,
    "flagged_other": 1,
    "other": 4,
    "seconds": 0.01,
}
GOOD_BYTES = {"store": 5, "store_free": 9, "node_disk": 1, "driver_disk": 1, "driver_free": 9, "driver_memory": 1}


def report_of(*judges: dict[str, Any], **parts: Any) -> TrialReport:
    facts = {"family": "f", "denoiser": "D", "prediction": "flow", "parameters": 1, "dtype": "float32", "device": "cpu"}
    return TrialReport(
        **{
            "run": "x",
            "facts": ModelFacts(**facts, side=1, max_tokens=77, adapted=1, ignored=()),
            "judges": tuple(
                StageJudge(stages=(stage,), judged=Judged(**{**GOOD_JUDGE, **judge}))
                for stage, judge in zip(("generate", "evaluate"), judges or ({},), strict=False)
            ),
            "rows": (),
            "prompts_checked": 10,
            "over_limit": {},
            "pictures": 8,
            "steps": 1,
            "picture_s": 1.0,
            "first_step_s": 1.0,
            "again_step_s": 1.0,
            "step_how": "measured",
            "memory": (StageMemory(stage="generate", peak=5, free=9, how=""),),
            "bytes": Bytes(**GOOD_BYTES),
            "hours": (),
            **parts,
        }
    )


def test_good_figures_say_nothing() -> None:
    assert cautions(report_of()) == []


CASES: dict[str, tuple[TrialReport, str, str]] = {
    "nothing is flagged": (report_of({"flagged_unsafe": 0}), "generate.judge", "none of the 4 unsafe"),
    "all is flagged": (report_of({"flagged_other": 4}), "generate.judge", "all of the 4 safe"),
    "a batch": (
        report_of(memory=(StageMemory(stage="merge", peak=9, free=5, how=""),)),
        "merge.render.batch",
        "merge needs",
    ),
    "a step": (report_of(memory=(StageMemory(stage="train", peak=9, free=5, how=""),)), "train.expert", "train needs"),
    "a store": (report_of(bytes=Bytes(**{**GOOD_BYTES, "store": 10})), "store.data_dir", "puts up to"),
    "an output": (report_of(bytes=Bytes(**{**GOOD_BYTES, "driver_disk": 10})), "run.output", "puts up to"),
    "prompts": (report_of(over_limit={"train": 2, "test": 1}), "prompts", "3 of 10 prompts"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_bad_figure_is_told_with_its_setting(case: str) -> None:
    report, field, text = CASES[case]
    [found] = cautions(report)
    assert found.field == field
    assert text in found.message
    assert found.fix


def test_a_server_s_room_is_not_known() -> None:
    assert cautions(report_of(bytes=Bytes(**{**GOOD_BYTES, "store": 10, "store_free": None}))) == []


def test_a_category_that_no_judge_covers_comes_first_and_one_that_another_covers_is_not_named() -> None:
    some = {"covered": ("c",), "uncovered": ("a", "b"), "flagged_unsafe": 0}
    found = cautions(report_of(some, {"covered": ("a",), "uncovered": ("b", "c")}))
    assert "covers b:" in found[0].message
    assert [each.field for each in found] == ["judge", "generate.judge"]
