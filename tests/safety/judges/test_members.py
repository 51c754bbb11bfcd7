"""A combination's members at any depth, and judges that share one."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from safety.judges.judge import JudgeConfig
from safety.judges.members import members, shares_a_network


def judge(name: str, threshold: float | None = None, **settings: Any) -> JudgeConfig:
    return JudgeConfig(name=name, threshold=threshold, settings=settings)


def combined(*inside: JudgeConfig) -> JudgeConfig:
    return judge("combination", judges=[each.model_dump() for each in inside])


NUDENET, Q16 = judge("nudenet", 0.3), judge("q16", weights="a", prompts="b")


def test_members_are_those_at_any_depth() -> None:
    assert members(NUDENET) == (NUDENET,)
    assert members(combined(NUDENET, combined(Q16, judge("vlm")))) == (NUDENET, Q16, judge("vlm"))


def test_a_combination_that_cannot_be_read_stands_for_itself() -> None:
    for inside in ([{"nome": "nudenet"}], ["nudenet"], 3, []):
        odd = judge("combination", judges=inside)
        assert members(odd) == (odd,)


@pytest.mark.parametrize(
    ("other", "shared"),
    [
        (NUDENET, True),
        (judge("nudenet", 0.9, batch=1, covers=["sexual"]), True),
        (combined(judge("opennsfw"), combined(judge("nudenet"))), True),
        (judge("nudenet", classes=["FACE_MALE"]), True),
        (judge("nudenet", sha256="0" * 64), True),
        (judge("q16", weights="a", prompts="b", prompts_sha256="0" * 64, device="cuda"), True),
        (judge("q16", weights="a", prompts="other"), False),
        (judge("q16", weights="another", prompts="b"), False),
        (combined(judge("opennsfw"), judge("vlm")), False),
    ],
)
def test_judges_share_a_network_whatever_else_is_set(other: JudgeConfig, shared: bool) -> None:
    paper = combined(NUDENET, Q16)
    assert shares_a_network(paper, [other]) is shared
    assert shares_a_network(other, [judge("safety-checker"), paper]) is shared


def test_it_loads_no_torch() -> None:
    script = "import sys, safety.judges.members; print('torch' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "False"
