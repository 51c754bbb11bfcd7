"""The report's plots as inline SVG in the page's own text colour, so that they are readable in light and dark mode."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from itertools import chain, cycle
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib.figure import Figure

from safety.evaluation.bootstrap import Estimate
from safety.evaluation.ip import OVERALL
from safety.evaluation.metrics import MetricsReport
from safety.evaluation.plan import BASE, MERGED
from safety.evaluation.tables import experts, full_models, label
from safety.plotting import plain_text, short

INK = "#010203"


class MarkerStyle(NamedTuple):
    """The marker of a model: colour, matplotlib shape and size in points."""

    colour: str
    shape: str
    size: float


class PointStyle(NamedTuple):
    """How figures of one kind are drawn beside a category: shape, size in points, filled or hollow, shift in rows."""

    text: str
    shape: str
    size: float
    filled: bool
    shift: float


TEST_POINTS = PointStyle("test prompts", "o", 6, filled=True, shift=0.07)
SECOND_POINTS = PointStyle("test prompts by the second judge", "^", 5, filled=False, shift=0.0)
HELDOUT_POINTS = PointStyle("held-out concepts", "D", 5, filled=False, shift=-0.07)
BASE_STYLE, MERGED_STYLE = MarkerStyle("#d1495b", "s", 8), MarkerStyle("#2a9d8f", "*", 14)
OTHER_STYLES = (
    MarkerStyle("#5f8f3e", "X", 9),
    MarkerStyle("#e9a23b", "P", 8),
    MarkerStyle("#3a86c8", "^", 8),
    MarkerStyle("#b5651d", "v", 8),
    MarkerStyle("#7b6fd6", "D", 7),
    MarkerStyle("#c95d9b", "<", 8),
    MarkerStyle("#4a6572", ">", 8),
)
"""The cycle of styles for the models beside the base and the merged one."""
EXPERT_STYLE = MarkerStyle("#8d99ae", "o", 5)
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
}


def ip_plot(metrics: MetricsReport) -> str:
    """Return a plot of the base's and the merged model's IP per category.

    Test prompts are filled; the second judge's figures of them, and held-out concepts, are hollow.
    """
    names = [*(name for name in metrics.ip[BASE] if name != OVERALL), OVERALL]
    with plain_text(**STYLE):
        figure = Figure(figsize=(7.6, 0.52 * len(names) + 1.2))
        axes = figure.subplots()
        for model, style, step in ((BASE, BASE_STYLE, 0.14), (MERGED, MERGED_STYLE, -0.14)):
            for kind, figures in (
                (TEST_POINTS, metrics.ip),
                (SECOND_POINTS, metrics.ip_second),
                (HELDOUT_POINTS, metrics.ip_heldout),
            ):
                text = f"{label(metrics, model)}, {kind.text}"
                _points(axes, names, figures.get(model, {}), style.colour, kind=kind, shift=step, text=text)
        axes.set_yticks(range(len(names)), [short(name) for name in names])
        axes.invert_yaxis()
        axes.axhline(len(names) - 1.5, color=INK, alpha=0.4, linewidth=0.8)
        axes.set_xlim(-2, 102)
        axes.set_xlabel("images flagged, %")
        axes.grid(axis="x", color=INK, alpha=0.15)
        axes.legend(loc="upper center", bbox_to_anchor=(0.45, -0.14), ncols=2, frameon=False)
        return _svg(figure, "ip", "Inappropriate probability by category, base against merged, with intervals")


def plane_plot(metrics: MetricsReport) -> str:
    """Return a plot of every model by its harm (IP) and its benign quality (objects present)."""
    with plain_text(**STYLE):
        figure = Figure(figsize=(7.6, 4.6))
        axes = figure.subplots()
        for model in experts(metrics):
            _add_model(axes, metrics, model, EXPERT_STYLE, "Experts", bars=False)
        styles = chain((BASE_STYLE, MERGED_STYLE), cycle(OTHER_STYLES))
        for model, style in zip(full_models(metrics), styles, strict=False):
            _add_model(axes, metrics, model, style, short(label(metrics, model)), bars=True)
        axes.set_xlabel("images from unsafe prompts flagged, % (lower is safer)")
        axes.set_ylabel("benign images with every\nnamed object, %")
        axes.grid(color=INK, alpha=0.15)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9)
        return _svg(
            figure, "plane", "Each model's inappropriate probability against its benign quality, with intervals"
        )


def curve_plot(curves: Mapping[str, Sequence[tuple[int, float]]], name: str, axis: str) -> str:
    """Return a plot of (step, value), one line per training run."""
    colours = mpl.colormaps["tab10"]
    with plain_text(**STYLE):
        figure = Figure(figsize=(7.6, 3.4))
        axes = figure.subplots()
        for index, (run, points) in enumerate(curves.items()):
            axes.plot(
                [step for step, _ in points],
                [value for _, value in points],
                label=short(run),
                color=colours(index % 10),
            )
        axes.set_xlabel("step")
        axes.set_ylabel(axis)
        axes.grid(color=INK, alpha=0.15)
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9)
        return _svg(figure, f"curve-{name}", f"{axis} by training step, one line per expert")


def _points(
    axes: Any,
    names: Sequence[str],
    found: Mapping[str, Estimate],
    colour: str,
    *,
    kind: PointStyle,
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
        [place - shift - kind.shift for place, _ in rows],
        xerr=widths,
        fmt=kind.shape,
        color=colour,
        markerfacecolor=colour if kind.filled else "none",
        markersize=kind.size,
        elinewidth=1.4,
        capsize=2,
        label=text,
    )


def _add_model(axes: Any, metrics: MetricsReport, model: str, style: MarkerStyle, text: str, *, bars: bool) -> None:
    """Add a model's marker, with its intervals where ``bars``; models with the same text share a legend entry."""
    across, up = metrics.ip[model][OVERALL], metrics.benign[model].intervals.get("objects_present")
    if up is None:
        return
    axes.errorbar(
        100 * across.value,
        100 * up.value,
        xerr=[[100 * (across.value - across.low)], [100 * (across.high - across.value)]] if bars else None,
        yerr=[[100 * (up.value - up.low)], [100 * (up.high - up.value)]] if bars else None,
        fmt=style.shape,
        color=style.colour,
        markersize=style.size,
        elinewidth=1.0,
        label=None if text in axes.get_legend_handles_labels()[1] else text,
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
    # Two plots of one page must not share ids.
    body = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", body)
    return re.sub(r"<svg([^>]*)>", rf'<svg\1 role="img" aria-label="{title}"><title>{title}</title>', body, count=1)
