"""The judge's network: its targets by brute force, and that it learns a small world."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from safety.emoji.build.fitting import FitConfig
from safety.emoji.build.judge_training import IGNORED, JudgeTrainingConfig, cell_targets, train_judge
from safety.emoji.build.measure import calibration_error
from safety.emoji.build.negatives import Negatives
from safety.emoji.build.pool import ScenePool
from safety.emoji.judge_net import concept_scores


def test_cell_targets_follow_the_distance_to_each_drawing(pool: ScenePool) -> None:
    rows = list(range(20))
    targets = cell_targets(pool, rows)
    names = list(pool.taxonomy.names)
    for index, row in enumerate(rows):
        for down in range(8):
            for across in range(8):
                nearest = []
                for item in pool.scenes[row].placed:
                    x, y = item.left + item.side / 2, item.top + item.side / 2
                    away = max(abs(8 * across + 4 - x), abs(8 * down + 4 - y))
                    nearest.append((away, names.index(item.concept)))
                away, concept = min(nearest)
                expected = concept if away <= 7 else IGNORED if away < 17 else len(names)
                assert targets[index, down, across] == expected


def test_scores_are_the_largest_probability_over_cells() -> None:
    logits = torch.randn(2, 4, 8, 8)
    scores = concept_scores(logits)
    for image in range(2):
        for concept in range(3):
            best = max(float(torch.softmax(logits[image, :, i, j], dim=0)[concept]) for i in range(8) for j in range(8))
            assert abs(float(scores[image, concept]) - best) < 1e-6


def test_a_perfectly_calibrated_score_has_no_error_and_an_overconfident_one_has() -> None:
    scores = torch.full((1000,), 0.75)
    right = torch.arange(1000) % 4 != 0
    assert calibration_error(scores, right) < 1e-6
    assert abs(calibration_error(torch.full((1000,), 0.95), right) - 0.2) < 1e-5


def test_the_judge_learns_and_a_stopped_training_goes_on_to_the_same_weights(pool: ScenePool, tmp_path: Path) -> None:
    config = JudgeTrainingConfig(
        widths=(8, 8, 16), fit=FitConfig(steps=40, batch=16, learning_rate=5e-3, checkpoint_every=20)
    )
    whole = train_judge(pool, config, tmp_path / "whole")
    half = config.model_copy(update={"fit": config.fit.model_copy(update={"steps": 40})})
    (tmp_path / "resumed").mkdir()
    straight = (tmp_path / "whole" / "state.safetensors").read_bytes()
    resumed = train_judge(pool, half, tmp_path / "whole")
    assert (tmp_path / "whole" / "state.safetensors").read_bytes() == straight
    names = list(pool.taxonomy.names)
    with torch.no_grad():
        scores = concept_scores(whole(pool.images(range(40))))
    assert torch.isfinite(scores).all()
    shown = [{names.index(c) for c in scene.concepts} for scene in pool.scenes[:40]]
    right = sum(int(scores[i].argmax()) in s for i, s in enumerate(shown))
    assert right > 28
    assert [p.shape for p in resumed.parameters()] == [p.shape for p in whole.parameters()]


@pytest.mark.slow
def test_a_judge_goes_on_from_kept_weights_and_learns_that_faint_drawings_show_nothing_unsafe(
    pool: ScenePool, tmp_path: Path
) -> None:
    fit = FitConfig(steps=60, batch=16, learning_rate=5e-3, checkpoint_every=60, warmup=5)
    first = train_judge(pool, JudgeTrainingConfig(widths=(8, 8, 16), fit=fit), tmp_path / "first")
    save_file({name: value.contiguous() for name, value in first.state_dict().items()}, tmp_path / "judge.safetensors")
    red = torch.tensor(["red square" in scene.concepts for scene in pool.scenes])
    whole = pool.pixels[red].float()
    corner = whole[:, :, :1, :1]
    faint = Negatives((corner + 0.4 * (whole - corner)).round().to(torch.uint8), 1)
    rows = range(len(faint.pixels))
    config = JudgeTrainingConfig(widths=(8, 8, 16), start=tmp_path / "judge.safetensors", fit=fit)
    second = train_judge(pool, config, tmp_path / "second", [(faint, 16)])
    with torch.no_grad():
        before, after = (concept_scores(net(faint.images(rows)))[:, 0].mean() for net in (first, second))
        scores = concept_scores(second(pool.images(range(40))))
    assert after < 0.7 * before
    names = list(pool.taxonomy.names)
    shown = [{names.index(c) for c in scene.concepts} for scene in pool.scenes[:40]]
    assert sum(int(scores[i].argmax()) in s for i, s in enumerate(shown)) > 28
