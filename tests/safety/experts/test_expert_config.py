"""Settings of an expert that cannot work are refused with the field's name."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from jobs.train.config import TrainConfig
from safety.experts import ExpertConfig


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"timesteps": (0.8, 0.2)}, "timesteps"),
        ({"benign_dropout": 1.0}, "benign_dropout"),
        ({"rows": 5, "accumulation": 2}, "rows is 5"),
        ({"benign_rows": 0}, "benign_rows is 0"),
        ({"stepz": 5}, "stepz"),
        ({"objective": {"name": "ppo"}}, "ppo"),
        ({"objective": {"name": "diffusion-dpo", "anchor_weight": 1.0}}, "anchor_weight"),
        ({"learning_rate": float("nan")}, "learning_rate"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        ExpertConfig.model_validate(settings)


def test_rows_must_be_shared_evenly_by_workers() -> None:
    with pytest.raises(ValidationError, match="3 workers"):
        TrainConfig(workers=3)


def test_placement_is_no_part_of_an_experts_name() -> None:
    assert TrainConfig(gpus_per_worker=0.5, max_failures=0).recipe("hate") == TrainConfig().recipe("hate")
    assert TrainConfig(workers=2).recipe("hate") != TrainConfig().recipe("hate")
    assert TrainConfig().recipe("violence") != TrainConfig().recipe("hate")


def test_an_elastic_expert_has_a_name_of_its_own_and_can_share_its_rows_at_every_size() -> None:
    elastic = TrainConfig(workers=2, min_workers=1)
    assert elastic.recipe("hate") != TrainConfig(workers=2).recipe("hate")
    with pytest.raises(ValidationError, match="3 workers"):
        TrainConfig(workers=4, min_workers=2, expert=ExpertConfig(rows=16))
    assert TrainConfig(workers=4, expert=ExpertConfig(rows=16))
    with pytest.raises(ValidationError, match="min_workers is 3, over workers 2"):
        TrainConfig(workers=2, min_workers=3)
