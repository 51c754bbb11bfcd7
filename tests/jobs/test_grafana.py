"""The dashboard against the metrics that jobs, endpoint and store declare."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest

from cluster.metrics import Counter, Gauge, Histogram, Metric
from cluster.store import metrics as store_metrics
from jobs.run import metrics as job_metrics
from serve import metrics as endpoint_metrics

ROOT = Path(__file__).parents[2]
BOARD: dict[str, Any] = json.loads((ROOT / "docs" / "grafana" / "safetydpo.json").read_text(encoding="utf-8"))
PANELS = [panel for panel in BOARD["panels"] if panel["type"] != "row"]
EXPRESSIONS = [(panel["title"], target["expr"]) for panel in PANELS for target in panel["targets"]]
OF_JOBS, OF_ENDPOINT, OF_STORE = (
    [value for value in vars(module).values() if isinstance(value, Metric)]
    for module in (job_metrics, endpoint_metrics, store_metrics)
)
DECLARED = (*OF_JOBS, *OF_ENDPOINT, *OF_STORE)
NAME = re.compile(r"\bray_safetydpo_\w+")


def series() -> dict[str, set[str]]:
    """Return every series that Prometheus can see, and its tags."""
    found = {}
    for metric in DECLARED:
        suffix = "_bucket" if isinstance(metric, Histogram) else ""
        found[f"{metric.exported}{suffix}"] = set(metric.tags)
    return found


def test_every_metric_of_the_dashboard_is_declared_and_every_declared_one_is_shown() -> None:
    shown = {name for _, expression in EXPRESSIONS for name in NAME.findall(expression)}
    assert shown == set(series())
    variables = json.dumps(BOARD["templating"])
    assert set(NAME.findall(variables)) <= set(series())


@pytest.mark.parametrize(("title", "expression"), EXPRESSIONS)
def test_an_expression_uses_tags_that_its_metrics_have(title: str, expression: str) -> None:
    names = NAME.findall(expression)
    tags = set.union(*(series()[name] for name in names)) | {"le"}
    used = {tag.strip() for group in re.findall(r"by \(([^)]*)\)", expression) for tag in group.split(",")}
    used |= set(re.findall(r'(\w+)\s*(?:=~|!=|=)\s*"', expression))
    assert used <= tags, title
    for opening, closing in ("()", "{}", "[]"):
        assert expression.count(opening) == expression.count(closing)
    for metric in DECLARED:
        counted = re.search(rf"{metric.exported}\b[^)]*\[\$__rate_interval\]", expression)
        assert counted is None or isinstance(metric, Counter), f"{title}: a level has no rate"


def test_panels_have_ids_of_their_own_and_do_not_overlap() -> None:
    ids = [panel["id"] for panel in BOARD["panels"]]
    assert len(set(ids)) == len(ids)
    for one, other in itertools.combinations([panel["gridPos"] for panel in BOARD["panels"]], 2):
        apart = (
            one["x"] + one["w"] <= other["x"]
            or other["x"] + other["w"] <= one["x"]
            or one["y"] + one["h"] <= other["y"]
            or other["y"] + other["h"] <= one["y"]
        )
        assert apart
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in BOARD["panels"])


def test_names_follow_prometheus() -> None:
    assert len({metric.name for metric in DECLARED}) == len(DECLARED)
    for metric in DECLARED:
        assert re.fullmatch(r"safetydpo_[a-z_]+", metric.name)
        assert metric.name.endswith("_total") == isinstance(metric, Counter)
        assert isinstance(metric, (Counter, Gauge, Histogram))
        assert metric.description
    assert all("run" in metric.tags for metric in OF_JOBS)
