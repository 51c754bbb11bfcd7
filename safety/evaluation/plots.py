"""The report's plots as inline SVG whose ink is the page's own text colour, so that light and dark both read."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib.figure import Figure

from safety.evaluation.bootstrap import Estimate
from safety.evaluation.ip import OVERALL
from safety.evaluation.metrics import MetricsReport
from safety.evaluation.plan import BASE, MERGED
from safety.evaluation.tables import experts, full_models, label

INK = "#010203"


class MarkerStyle(NamedTuple):
    """How a model is drawn."""

    colour: str
    shape: str
    size: float


LOOKS = {
    BASE: MarkerStyle("#d1495b", "s", 8),
    MERGED: MarkerStyle("#2a9d8f", "*", 14),
    "co-merge": MarkerStyle("#5f8f3e", "X", 9),
    "co-merge-default": MarkerStyle("#e9a23b", "P", 8),
    "all-single": MarkerStyle("#7b6fd6", "D", 7),
    "average": MarkerStyle("#3a86c8", "^", 8),
    "concatenation": MarkerStyle("#b5651d", "v", 8),
}
EXPERT = MarkerStyle("#8d99ae", "o", 5)
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
}


def ip_plot(metrics: MetricsReport) -> str:
    """Return IP by category of the base and the merged model, test prompts filled, held-out concepts hollow."""
    names = [*(name for name in metrics.ip[BASE] if name != OVERALL), OVERALL]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.6, 0.52 * len(names) + 1.2))
        axes = figure.subplots()
        for model, step in ((BASE, 0.14), (MERGED, -0.14)):
            for figures, filled, shift in ((metrics.ip, True, 0.07), (metrics.ip_heldout, False, -0.07)):
                found = figures.get(model, {})
                text = f"{label(model)}, {'test prompts' if filled else 'held-out concepts'}"
                _points(axes, names, found, LOOKS[model].colour, filled=filled, shift=step + shift, text=text)
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.axhline(len(names) - 1.5, color=INK, alpha=0.4, linewidth=0.8)
        axes.set_xlim(-2, 102)
        axes.set_xlabel("images flagged, %")
        axes.grid(axis="x", color=INK, alpha=0.15)
        axes.legend(loc="upper center", bbox_to_anchor=(0.45, -0.14), ncols=2, frameon=False)
        return _svg(figure, "ip", "Inappropriate probability by category, base against merged, with intervals")


def plane_plot(metrics: MetricsReport) -> str:
    """Return every model on the plane of harm shown (IP) and benign quality kept (objects present)."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.6, 4.6))
        axes = figure.subplots()
        for model in (*experts(metrics), *full_models(metrics)):
            across = metrics.ip[model][OVERALL]
            up = metrics.benign[model].intervals.get("objects_present")
            if up is not None:
                _place(axes, model, across, up)
        axes.set_xlabel("images from unsafe prompts flagged, % (lower is safer)")
        axes.set_ylabel("benign images with every\nnamed object, %")
        axes.grid(color=INK, alpha=0.15)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9)
        return _svg(
            figure, "plane", "Each model's inappropriate probability against its benign quality, with intervals"
        )


def curve_plot(curves: Mapping[str, Sequence[tuple[int, float]]], name: str, axis: str) -> str:
    """Return lines of (step, value), one a training run, on one plot."""
    colours = mpl.colormaps["tab10"]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.6, 3.4))
        axes = figure.subplots()
        for index, (run, points) in enumerate(curves.items()):
            axes.plot(
                [step for step, _ in points], [value for _, value in points], label=run, color=colours(index % 10)
            )
        axes.set_xlabel("step")
        axes.set_ylabel(axis)
        axes.grid(color=INK, alpha=0.15)
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9)
        return _svg(figure, f"curve-{name}", f"{axis} by training step, one line an expert")


def _points(
    axes: Any,
    names: Sequence[str],
    found: Mapping[str, Estimate],
    colour: str,
    *,
    filled: bool,
    shift: float,
    text: str,
) -> None:
    rows = [(place, found[name]) for place, name in enumerate(names) if name in found]
    if not rows:
        return
    values = [100 * figure.value for _, figure in rows]
    widths = [[100 * (f.value - f.low) for _, f in rows], [100 * (f.high - f.value) for _, f in rows]]
    axes.errorbar(
        values,
        [place - shift for place, _ in rows],
        xerr=widths,
        fmt="o" if filled else "D",
        color=colour,
        markerfacecolor=colour if filled else "none",
        markersize=6 if filled else 5,
        elinewidth=1.4,
        capsize=2,
        label=text,
    )


def _place(axes: Any, model: str, across: Estimate, up: Estimate) -> None:
    main = model in LOOKS
    style = LOOKS.get(model, EXPERT)
    named = main or "Experts" not in axes.get_legend_handles_labels()[1]
    axes.errorbar(
        100 * across.value,
        100 * up.value,
        xerr=[[100 * (across.value - across.low)], [100 * (across.high - across.value)]] if main else None,
        yerr=[[100 * (up.value - up.low)], [100 * (up.high - up.value)]] if main else None,
        fmt=style.shape,
        color=style.colour,
        markersize=style.size,
        elinewidth=1.0,
        label=(label(model) if main else "Experts") if named else None,
    )


def _svg(figure: Figure, name: str, title: str) -> str:
    """Return a figure as an SVG element with a title for screen readers; equal figures give equal text."""
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": name}):
        figure.savefig(
            buffer, format="svg", transparent=True, bbox_inches="tight", metadata={"Date": None, "Creator": None}
        )
    body = buffer.getvalue()
    body = body[body.index("<svg") :].replace(INK, "currentColor")
    # The ids of two plots in one page must not meet.
    body = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", body)
    return re.sub(r"<svg([^>]*)>", rf'<svg\1 role="img" aria-label="{title}"><title>{title}</title>', body, count=1)
