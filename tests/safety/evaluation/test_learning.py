"""Learning curves out of the experts' folders."""

from __future__ import annotations

from pathlib import Path

import pytest

from safety.evaluation.learning import ACCURACY, WINDOW, WINNER, read_curves, smooth
from safety.experts.curves import write_metrics


def test_curves_are_means_of_the_last_steps(tmp_path: Path) -> None:
    history = [
        {"step": i, "implicit_accuracy": float(i % 2), "winner_error": 0.2, "reference_winner_error": 0.1}
        for i in range(30)
    ]
    write_metrics(history, tmp_path)
    (tmp_path / "empty").mkdir()
    curves = read_curves({"violence": tmp_path, "hate": tmp_path / "empty"})
    assert curves.keys() == {ACCURACY, WINNER}
    assert curves[ACCURACY].keys() == {"violence"}
    assert curves[ACCURACY]["violence"][-1] == (29, pytest.approx(0.5))
    assert curves[WINNER]["violence"][0] == (0, pytest.approx(2.0))


def test_smoothing_starts_with_what_there_is() -> None:
    points = [(i, float(i)) for i in range(WINDOW + 2)]
    assert smooth(points)[:3] == [(0, 0.0), (1, 0.5), (2, 1.0)]
    assert smooth(points)[-1] == (WINDOW + 1, sum(range(2, WINDOW + 2)) / WINDOW)
    assert read_curves({}) == {}
