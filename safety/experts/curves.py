"""Learning curves: each step's metrics as a JSON-lines file and as an image."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from safety.experts.checkpoint import Metrics
from safety.plotting import plain_text, short

METRICS_FILE, CURVES_FILE = "metrics.jsonl", "curves.png"
PANELS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("loss", ("loss", "dpo_loss", "validation_dpo_loss")),
    ("implicit accuracy", ("implicit_accuracy", "validation_implicit_accuracy")),
    ("error, mean squared", ("winner_error", "reference_winner_error", "loser_error", "reference_loser_error")),
    ("drift on benign rows", ("drift",)),
)


def write_metrics(history: Sequence[Metrics], folder: Path) -> Path:
    """Write one JSON object per step to ``metrics.jsonl``."""
    path = folder / METRICS_FILE
    path.write_text("".join(json.dumps(metrics, sort_keys=True) + "\n" for metrics in history), encoding="utf-8")
    return path


@plain_text()
def plot_curves(history: Sequence[Metrics], title: str, folder: Path) -> Path:
    """Draw the metrics over the steps to ``curves.png``; equal histories give equal bytes."""
    # A figure of its own rather than pyplot's, whose global state would outlive the call.
    figure = Figure(figsize=(10, 6), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (label, names) in zip(figure.subplots(2, 2).flat, PANELS, strict=True):
        for name in names:
            _draw(axes, history, name)
        axes.set(xlabel="step", ylabel=label)
        axes.grid(visible=True, alpha=0.3)
        if axes.lines:
            axes.legend(fontsize="x-small")
    figure.suptitle(short(title))
    path = folder / CURVES_FILE
    figure.savefig(path, dpi=100, metadata={"Software": None})
    return path


def _draw(axes: Any, history: Sequence[Metrics], name: str) -> None:
    points = [(metrics["step"], metrics[name]) for metrics in history if name in metrics]
    if points:
        marker = "o" if name.startswith("validation_") else None
        axes.plot(*zip(*points, strict=True), label=name.replace("_", " "), marker=marker, linewidth=1)
