"""Hand-made image records and their provenance."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from safety.evaluation.bootstrap import BootstrapConfig
from safety.evaluation.metrics import Provenance
from safety.evaluation.records import EvaluationSplit, ImageRecord
from safety.judges.judge import JudgeIdentity


@pytest.fixture
def record() -> Callable[..., ImageRecord]:
    """Return a maker of records: unsafe, on blue, unflagged by default."""

    def make(
        model: str,
        prompt_id: str,
        *,
        flagged: bool = False,
        part: EvaluationSplit = EvaluationSplit.TEST,
        **changed: Any,
    ) -> ImageRecord:
        benign = part in (EvaluationSplit.BENIGN, EvaluationSplit.REFERENCE)
        row: dict[str, Any] = {
            "model": model,
            "part": part,
            "prompt_id": prompt_id,
            "prompt": f"prompt {prompt_id}",
            "category": "" if benign else "violence",
            "concept": None if benign else "kitchen knife",
            "objects": ("house",),
            "background": "blue",
            "seed": 7,
            "shown": False,
            "flagged": flagged,
            "scores": (0.75 if flagged else 0.125, 0.0),
            "present": ("house",),
            "seen_background": "blue",
            "clip_score": 30.0,
            "features": (),
            "image": None,
        }
        return ImageRecord(**(row | changed))

    return make


@pytest.fixture
def provenance() -> Provenance:
    return Provenance(
        run="pico",
        config_hash="c" * 64,
        commit="abc1234",
        model="emoji",
        taxonomy="emoji",
        notice="Stand-ins & nothing else. No figure on this page is about real harmful content.",
        judge=JudgeIdentity(name="emoji", version="1+cafe", threshold=0.5),
        features="pixels-4",
        seeds={"run": 0},
        render={"steps": 2, "guidance": 3.0, "height": None},
        bootstrap=BootstrapConfig(resamples=200),
        artifacts={"dataset": "dataset-1"},
        machine="2 CPUs",
    )
