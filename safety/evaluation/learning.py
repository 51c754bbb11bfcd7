"""The experts' learning curves for the report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from safety.experts.curves import METRICS_FILE

WINDOW = 10
ACCURACY = f"implicit accuracy (mean of {WINDOW} steps)"
WINNER = f"winner's error over the base's (mean of {WINDOW} steps)"

Points = list[tuple[int, float]]
Curves = dict[str, dict[str, Points]]
"""Axis title -> expert -> (step, value)."""


def read_curves(folders: Mapping[str, Path]) -> Curves:
    """Return the curves of the experts, from those folders that have metrics per step.

    An implicit accuracy near 1 means that the winner is preferred. A winner's error well above the base's means that the
    expert's predictions of both images got worse, a known failure of DPO.
    """
    curves: Curves = {ACCURACY: {}, WINNER: {}}
    for name, folder in folders.items():
        path = folder / METRICS_FILE
        if not path.is_file():
            continue
        steps = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        accuracy = [(s["step"], s["implicit_accuracy"]) for s in steps if "implicit_accuracy" in s]
        measured = [s for s in steps if s.get("reference_winner_error")]
        winner = [(s["step"], s["winner_error"] / s["reference_winner_error"]) for s in measured]
        curves[ACCURACY][name], curves[WINNER][name] = smooth(accuracy), smooth(winner)
    return {axis: runs for axis, runs in curves.items() if any(runs.values())}


def smooth(points: Sequence[tuple[int, float]]) -> Points:
    """Return each step with the mean of the last ``WINDOW`` values."""
    values = [value for _, value in points]
    means = [values[max(0, i + 1 - WINDOW) : i + 1] for i in range(len(values))]
    return [(step, sum(last) / len(last)) for (step, _), last in zip(points, means, strict=True)]
