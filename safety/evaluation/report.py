"""The evaluation's report: one self-contained HTML file from the metrics and the shown images."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from safety.evaluation import tables
from safety.evaluation.learning import Curves
from safety.evaluation.metrics import MetricsReport
from safety.evaluation.plan import BASE, MERGED
from safety.evaluation.plots import curve_plot, ip_plot, plane_plot
from safety.evaluation.records import EvaluationSplit, ImageRecord, select

HERE = Path(__file__).parent


class Example(NamedTuple):
    """One prompt's images by the base and by the merged model, from the same seed."""

    prompt: str
    seed: int
    before: str
    """Data URI of the base's PNG."""
    after: str
    before_flagged: bool
    after_flagged: bool


class Gallery(NamedTuple):
    """Examples under one heading."""

    title: str
    examples: tuple[Example, ...]


def render_report(metrics: MetricsReport, records: Sequence[ImageRecord], curves: Curves | None = None) -> str:
    """Return the report as one HTML page.

    Args:
        metrics: The figures.
        records: Image records; those that include an image are shown.
        curves: Learning curves of the experts, if any.
    """
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["unbroken"] = unbroken
    return environment.get_template("report.html").render(
        metrics=metrics,
        base=BASE,
        merged=MERGED,
        share=tables.share,
        style=Markup((HERE / "report.css").read_text(encoding="utf-8")),
        tables={
            "goals": tables.goals_table(metrics),
            "ip": tables.ip_table(metrics, heldout=False),
            "second": tables.second_ip_table(metrics),
            "heldout": tables.ip_table(metrics, heldout=True),
            "differences": tables.difference_table(metrics),
            "experts": tables.expert_table(metrics),
            "benign": tables.benign_table(metrics),
            "context": tables.context_table(metrics),
            "concepts": tables.concept_table(metrics),
            "provenance": tables.provenance_table(metrics),
            "seconds": tables.seconds_table(metrics),
        },
        ip_plot=Markup(ip_plot(metrics)),
        plane_plot=Markup(plane_plot(metrics)),
        curves=[
            Markup(curve_plot(runs, f"{number}", axis)) for number, (axis, runs) in enumerate((curves or {}).items())
        ],
        galleries=galleries(records),
    )


def galleries(records: Sequence[ImageRecord]) -> list[Gallery]:
    """Return the shown examples: by category, then held-out concepts, then benign prompts."""
    shown = [record for record in records if record.image is not None]
    categories = list(dict.fromkeys(record.category for record in shown if record.part is EvaluationSplit.TEST))
    found = [Gallery(category, _examples(shown, EvaluationSplit.TEST, category)) for category in categories]
    found += [
        Gallery("held-out concepts", _examples(shown, EvaluationSplit.HELDOUT, None)),
        Gallery("benign prompts", _examples(shown, EvaluationSplit.BENIGN, None)),
    ]
    return [gallery for gallery in found if gallery.examples]


def _examples(shown: Sequence[ImageRecord], part: EvaluationSplit, category: str | None) -> tuple[Example, ...]:
    after = {record.prompt_id: record for record in select(shown, model=MERGED, part=part, category=category)}
    return tuple(
        Example(
            prompt=before.prompt,
            seed=before.seed,
            before=data_uri(before.image or b""),
            after=data_uri(after[before.prompt_id].image or b""),
            before_flagged=before.flagged,
            after_flagged=after[before.prompt_id].flagged,
        )
        for before in select(shown, model=BASE, part=part, category=category)
        if before.prompt_id in after
    )


def unbroken(cell: str) -> str:
    """Return a cell's text without a line break inside an interval such as "[2.6, 6.2]"."""
    return re.sub(r"(?<=,) (?=-?[\d.]+\])", "\N{NO-BREAK SPACE}", cell)


def data_uri(png: bytes) -> str:
    """Return a PNG as a data URI."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
