"""The plots of a merge's artifact: the experts' shares, the search, and the scales of a consolidation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from safety.merge.rendered_score import RenderedScore
from safety.merge.search import Trial
from safety.plotting import plain_text, short

COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb", "#222255", "#994f00")
"""Paul Tol's bright scheme, which colour-blind readers can distinguish too; repeated beyond its length."""


@plain_text()
def plot_shares(shares: Mapping[str, Mapping[str, float]], path: Path) -> None:
    """Draw each layer's shares by expert as stacked bars, ``{layer: {expert: share}}``, to a PNG."""
    layers = list(shares)
    experts = list(next(iter(shares.values())))
    figure = Figure(figsize=(8, 1.5 + 0.19 * len(layers)), layout="constrained")
    axes = figure.subplots()
    left = [0.0] * len(layers)
    for index, expert in enumerate(experts):
        values = [shares[layer][expert] for layer in layers]
        axes.barh(range(len(layers)), values, left=left, color=COLOURS[index % len(COLOURS)], label=short(expert))
        left = [start + value for start, value in zip(left, values, strict=True)]
    axes.set_yticks(range(len(layers)), [_short(layer) for layer in layers], fontsize=6)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xlabel("share of the layer taken from each expert")
    figure.legend(loc="outside upper center", ncols=4, fontsize=8, frameon=False)
    _save(figure, path)


def _short(layer: str) -> str:
    return layer.replace("attentions", "attn").replace("transformer_blocks", "block").replace("_blocks", "")


@plain_text()
def plot_search(trials: Sequence[Trial], rendered: Mapping[int, float], chosen: int, path: Path) -> None:
    """Draw the trials' harm and drift, and the objectives of the rendered ones, to a PNG.

    Args:
        trials: The finished trials in order, the start first.
        rendered: The rendered objective by the trial's position.
        chosen: The chosen trial's position.
        path: The PNG to write.
    """
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    history, plane = figure.subplots(1, 2)
    scores = [trial.score for trial in trials]
    best = [min(scores[: index + 1]) for index in range(len(scores))]
    history.plot(range(len(scores)), scores, "o", color=COLOURS[0], label="surrogate")
    history.step(range(len(scores)), best, where="post", color=COLOURS[0], label="best so far")
    history.plot(list(rendered), list(rendered.values()), "D", color=COLOURS[1], label="rendered objective")
    history.plot([chosen], [rendered[chosen]], "*", color="black", markersize=12, label="chosen")
    history.set_xlabel("trial (0 is the start)")
    history.set_ylabel("score, smaller is better")
    history.legend(fontsize=8, frameon=False)
    plane.plot([trial.drift for trial in trials], [trial.harm for trial in trials], "o", color=COLOURS[0])
    for position in rendered:
        point = (trials[position].drift, trials[position].harm)
        plane.annotate(str(position), point, textcoords="offset points", xytext=(4, 4))
    plane.set_xlabel("drift on benign prompts")
    plane.set_ylabel("harm left on unsafe prompts")
    _save(figure, path)


@plain_text()
def plot_scales(scores: Mapping[float, RenderedScore], chosen: float, path: Path) -> None:
    """Draw the rendered score of an adapter at each scale to a PNG."""
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    scales = sorted(scores)
    lines = {
        "IP": [scores[scale].ip for scale in scales],
        "IP of the worst category": [scores[scale].worst_ip for scale in scales],
        "benign images that fail": [scores[scale].benign_failed for scale in scales],
        "context lost": [scores[scale].context_lost for scale in scales],
        "objective": [scores[scale].objective for scale in scales],
    }
    for colour, (label, values) in zip(COLOURS, lines.items(), strict=False):
        axes.plot(scales, values, "o-", color=colour, label=label)
    axes.axvline(chosen, color="black", linestyle=":", label="chosen")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("scale of the adapter")
    axes.set_ylabel("share of images, and their weighted sum")
    figure.legend(loc="outside upper center", ncols=3, fontsize=8, frameon=False)
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, format="png", dpi=130, metadata={"Software": None})
