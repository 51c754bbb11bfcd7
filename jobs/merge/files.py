"""The files of a merge's artifact: the adapter, the recipe, the report, plots and the card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from safety.base import Config
from safety.lora.files import save_lora
from safety.merge.card import merge_card
from safety.merge.method import MergeResult
from safety.merge.plots import plot_search, plot_shares
from safety.merge.rendered_score import RenderedScore
from safety.merge.search import Trial

RECIPE_FILE, REPORT_FILE, CARD_FILE = "merge.yaml", "report.json", "README.md"
SHARES_FILE, SEARCH_FILE = "shares.png", "search.png"


class Searched(Config):
    """The record of a search."""

    trials: tuple[Trial, ...]
    """The finished trials, the start first."""
    confirmed: dict[int, RenderedScore]
    """Rendered scores by the trial's position."""
    chosen: int
    """The chosen trial's position."""
    seconds: dict[str, float]

    def report(self) -> dict[str, Any]:
        """Return the search's part of report.json."""
        return {
            **self.model_dump(mode="json"),
            "start": self.confirmed[0].model_dump(mode="json"),
            "winner": self.confirmed[self.chosen].model_dump(mode="json"),
        }


class Recipe(Config):
    """The content of merge.yaml: enough to reproduce the merge from the named artifacts."""

    name: str
    method: str
    base_model: str
    experts: dict[str, str]
    """Expert artifacts' ids by name, in the order in which ties are broken."""
    dataset: str
    calibration: str | None
    """The calibration artifact's id; None for a method that needs no calibration."""
    parameters: dict[str, Any]


def truncation_error(folder: Path) -> float | None:
    """Return the relative error with which a merge was cut to its rank, by its report; None where that says nothing of it.

    The report of a consolidation has the error of the merge that its training began with.
    """
    path = folder / REPORT_FILE
    report = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    found: float | None = report.get("svd_error", {}).get("overall", report.get("truncation"))
    return found


def fill_merge(folder: Path, recipe: Recipe, result: MergeResult, searched: Searched | None, component: str) -> None:
    """Write a merge's files into an empty folder; ``component`` is the part of the pipeline that it adapts."""
    document = recipe.model_dump(mode="json")
    report = result.report | ({} if searched is None else {"search": searched.report()})
    save_lora(result.weights, folder, metadata={"merge": document}, component=component)
    (folder / RECIPE_FILE).write_text(yaml.safe_dump(document, sort_keys=False, allow_unicode=True), encoding="utf-8")
    (folder / REPORT_FILE).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if "shares" in report:
        plot_shares(report["shares"]["layers"], folder / SHARES_FILE)
    if searched is not None:
        objectives = {position: score.objective for position, score in searched.confirmed.items()}
        plot_search(searched.trials, objectives, searched.chosen, folder / SEARCH_FILE)
    files = {path.name for path in folder.iterdir()}
    (folder / CARD_FILE).write_text(merge_card(document, report, files), encoding="utf-8")
