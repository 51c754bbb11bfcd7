"""The whole report of a small evaluation with figures known beforehand."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from jobs.release.card import Measured, write_card
from safety.evaluation.benign import BASE_IMAGES
from safety.evaluation.bootstrap import Estimate
from safety.evaluation.goals import GoalsConfig, check_goals
from safety.evaluation.metrics import MetricsReport, Provenance, compute_metrics
from safety.evaluation.plots import curve_plot, ip_plot, plane_plot
from safety.evaluation.records import EvaluationSplit, ImageRecord
from safety.evaluation.report import galleries, render_report
from safety.evaluation.tables import terminal_tables
from safety.images import encode_png
from safety.judges.judge import JudgeIdentity
from safety.release import BaseModelIdentity, ReleaseInfo
from tests.support.merge_method_file import LABEL, NAME, add_method

CATEGORIES = ("violence", "hate")
FLAGGED = {"base": 9, "merged": 1, "average": 5}
"""Of ten test prompts a category."""
Maker = Callable[..., ImageRecord]


def small_evaluation(record: Maker) -> list[ImageRecord]:
    draw = np.random.default_rng(0)
    rows = []
    for model, flagged in FLAGGED.items():
        for category in CATEGORIES:
            for part, count in ((EvaluationSplit.TEST, 10), (EvaluationSplit.HELDOUT, 4)):
                for i in range(count):
                    changed = {"shown": True, "image": _png(i)} if model != "average" and i < 2 else {}
                    kept = ("house",) if i else ()
                    name = f"{category}-{part}-{i}"
                    rows.append(
                        record(model, name, part=part, flagged=i < flagged, category=category, present=kept, **changed)
                    )
        for i in range(20):
            point = tuple(draw.normal(size=3))
            rows.append(
                record(model, f"b{i}", part=EvaluationSplit.BENIGN, features=point, present=("house",) if i else ())
            )
    rows += [
        record("base", f"b{i}", part=EvaluationSplit.REFERENCE, features=tuple(draw.normal(size=3))) for i in range(20)
    ]
    rows += [record("violence", f"violence-test-{i}", flagged=i == 0) for i in range(5)]
    rows += [record("violence", f"hate-test-{i}", category="hate", flagged=True) for i in range(5)]
    rows += [record("violence", f"b{i}", part=EvaluationSplit.BENIGN, features=(0.0, 0.0, 1.0)) for i in range(4)]
    return rows


def _png(shade: int) -> bytes:
    return encode_png(torch.full((3, 8, 8), 20 * shade, dtype=torch.uint8))


@pytest.fixture
def metrics(record: Maker, provenance: Provenance) -> MetricsReport:
    return compute_metrics(small_evaluation(record), CATEGORIES, provenance, GoalsConfig(), {"train": 12.5})


def test_the_file_has_the_promised_shape(metrics: MetricsReport) -> None:
    document = json.loads(metrics.model_dump_json())
    assert document["ip"].keys() == {"base", "merged", "average", "violence"}
    for model, flagged in FLAGGED.items():
        for name, count in (("overall", 20), ("violence", 10), ("hate", 10)):
            figure = document["ip"][model][name]
            assert figure.keys() == {"value", "low", "high", "n"}
            assert (figure["value"], figure["n"]) == (pytest.approx(flagged / 10), count)
            assert 0 <= figure["low"] <= figure["value"] <= figure["high"] <= 1
    assert document["ip_heldout"]["merged"]["overall"]["value"] == 0.25
    assert "violence" not in document["ip_heldout"]
    assert document["ip"]["violence"]["overall"]["value"] == pytest.approx((0.2 + 1.0) / 2)
    benign = document["benign"]["merged"]
    assert (benign["objects_present"], benign["flagged"], benign["n"]) == (0.95, 0.0, 20)
    assert benign["clip_score"] == 30.0
    assert benign["fid"] > 0
    assert document["benign"]["violence"]["fid"] is None
    assert (document["context_kept"]["value"], document["context_kept"]["n"]) == (0.9, 20)
    assert document["seconds"] == {"train": 12.5}
    assert document["provenance"]["judge"] == {"name": "emoji", "version": "1+cafe", "threshold": 0.5}
    assert document["ip_difference"]["average"]["value"] == pytest.approx(-0.4)
    assert document["ip_by_concept"]["base"] == {"kitchen knife": [18 + 8, 28]}
    assert MetricsReport.model_validate_json(metrics.model_dump_json()) == metrics


def test_the_fid_of_every_full_model_names_its_features_and_counts(metrics: MetricsReport) -> None:
    assert metrics.fid is not None
    assert (metrics.fid.features, metrics.fid.n, metrics.fid.dimensions, metrics.fid.note) == ("pixels-4", 20, 3, "")
    assert metrics.fid.reference == BASE_IMAGES


def test_goals_compare_with_the_limits(metrics: MetricsReport) -> None:
    verdicts = {goal.what: goal.met for goal in metrics.goals}
    assert verdicts["IP of the base model"]
    assert verdicts["IP of the merged model"]
    assert verdicts["IP of the worst category (violence)"]
    assert verdicts["Every named object present, against the base"]
    assert verdicts["Benign images flagged, against the base"]
    assert verdicts["Aligned images that keep their context"]
    assert len(verdicts) == 8


def test_goals_not_reached_say_so(record: Maker, provenance: Provenance) -> None:
    strict = GoalsConfig(base_ip=0.95, merged_ip=0.05, worst_ip=0.05, context=0.95)
    found = compute_metrics(small_evaluation(record), CATEGORIES, provenance, strict, {})
    missed = [goal.what for goal in found.goals if not goal.met]
    assert "IP of the base model" in missed
    assert "IP of the merged model" in missed
    assert "IP of the worst category (violence)" in missed
    assert "Aligned images that keep their context" in missed


def test_goals_against_the_base_compare_falls_and_those_that_are_none_are_left_out(
    record: Maker, provenance: Provenance
) -> None:
    """The base's IP is .9, the merge's .1; the category that falls the least is the worst goal's."""
    nothing = dict.fromkeys(("base_ip", "merged_ip", "worst_ip", "context"))
    base = dict.fromkeys(("overall", *CATEGORIES), FLAGGED["base"] / 10)
    for fall, met in ((0.5, True), (0.99, False)):
        config = GoalsConfig.model_validate({**nothing, "ip_fall": fall, "worst_ip_fall": fall})
        found = compute_metrics(small_evaluation(record), CATEGORIES, provenance, config, {})
        goals = {goal.what: goal for goal in found.goals if goal.what.startswith("IP")}
        overall = goals.pop("IP, against the base")
        ((what, worst),) = goals.items()
        assert what.startswith("IP of the category that falls the least (")
        assert overall.value == pytest.approx(found.ip["merged"]["overall"].value / base["overall"] - 1)
        changes = {name: found.ip["merged"][name].value / found.ip["base"][name].value - 1 for name in CATEGORIES}
        assert worst.value == pytest.approx(max(changes.values()))
        assert (overall.met, worst.met) == (met, met)
        assert not any("context" in goal.what for goal in found.goals)


def test_a_category_that_rises_from_nothing_falls_the_least(metrics: MetricsReport) -> None:
    """No share of nothing can be said, and leaving the category out would mark the goal as met."""

    def shares(**values: float) -> dict[str, Estimate]:
        return {name: Estimate(value=value, low=value, high=value, n=10) for name, value in values.items()}

    base, merged = (
        shares(overall=0.4, hate=0.0, violence=0.8, quiet=0.0),
        shares(overall=0.1, hate=0.1, violence=0.1, quiet=0.0),
    )
    config = GoalsConfig(ip_fall=0.5, worst_ip_fall=0.5)
    benign = {name: metrics.benign[name] for name in ("base", "merged")}
    goals = {goal.what: goal for goal in check_goals({"base": base, "merged": merged}, benign, None, config)}
    assert goals["IP, against the base"].met
    worst = goals["IP of the category that falls the least (hate), against the base"]
    assert (worst.met, worst.value, worst.limit) == (False, 0.1, "at most -50%")
    assert worst.shown == "from 0% to 10.0%"


def test_every_limit_may_be_null(record: Maker, provenance: Provenance) -> None:
    none = GoalsConfig.model_validate(dict.fromkeys(GoalsConfig.model_fields))
    found = compute_metrics(small_evaluation(record), CATEGORIES, provenance, none, {})
    assert [goal.what for goal in found.goals] == ["Benign images flagged, against the base"]


def test_equal_records_give_equal_metrics_whatever_their_order(record: Maker, provenance: Provenance) -> None:
    rows = small_evaluation(record)
    straight = compute_metrics(rows, CATEGORIES, provenance, GoalsConfig(), {})
    turned = compute_metrics(rows[::-1], CATEGORIES, provenance, GoalsConfig(), {})
    assert turned.ip == straight.ip
    assert turned.benign.keys() == straight.benign.keys()
    assert turned.context == straight.context


def test_a_missing_model_is_an_error(record: Maker, provenance: Provenance) -> None:
    rows = [row for row in small_evaluation(record) if row.model != "merged"]
    with pytest.raises(ValueError, match="no records of merged"):
        compute_metrics(rows, CATEGORIES, provenance, GoalsConfig(), {})


class _Page(HTMLParser):
    """Collects the sources, images, ids, tables and text of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.ids: list[str] = []
        self.open: list[tuple[str, dict[str, str | None]]] = []
        self.tables: list[tuple[str, dict[str, str | None]]] = []
        """The element around each table."""
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.sources += [str(found[name]) for name in ("src", "href", "xlink:href") if found.get(name)]
        self.ids += [str(found["id"])] if found.get("id") else []
        if tag == "img":
            self.images.append(found)
        if tag == "table":
            self.tables.append(self.open[-1])
        if tag not in ("img", "meta", "link"):
            self.open.append((tag, found))

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open.pop()[0] != tag:
            pass

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.fixture
def page(metrics: MetricsReport, record: Maker) -> tuple[str, _Page]:
    curves = {"Implicit accuracy": {"violence": [(0, 0.5), (10, 0.9)]}}
    html = render_report(metrics, small_evaluation(record), curves)
    parsed = _Page()
    parsed.feed(html)
    return html, parsed


def test_the_page_needs_nothing_from_outside(page: tuple[str, _Page]) -> None:
    html, parsed = page
    assert all(source.startswith(("data:", "#")) for source in parsed.sources)
    assert "<script" not in html
    assert not re.search(r"@import|url\((?!#)", html)


def test_every_image_has_a_text(page: tuple[str, _Page]) -> None:
    html, parsed = page
    # Two models, two examples of two categories, of test prompts and of held-out concepts.
    assert len(parsed.images) == 2 * 2 * 2 * 2
    assert all("prompt" in str(found["alt"]) and "flagged" in str(found["alt"]) for found in parsed.images)
    assert html.count('role="img"') == html.count("<svg") == 3
    assert len(parsed.ids) == len(set(parsed.ids))


def test_the_page_says_what_it_is_about(page: tuple[str, _Page]) -> None:
    text = " ".join(" ".join(page[1].text).split())
    for expected in (
        "No figure on this page is about real harmful content",
        "90.0% [",
        "emoji, version 1+cafe, threshold 0.5",
        "pixels-4",
        "c" * 64,
        "dataset-1",
        "n = 20",
        "from other seeds",
        "12.5",
    ):
        assert expected in text


def test_the_notice_is_shown_where_the_taxonomy_has_one(metrics: MetricsReport, provenance: Provenance) -> None:
    assert "Stand-ins &amp; nothing else." in render_report(metrics, [])
    real = metrics.model_copy(update={"provenance": provenance.model_copy(update={"notice": None})})
    page = render_report(real, [])
    assert "Stand-ins" not in page
    assert 'class="notice"' not in page


def test_a_wide_table_wraps_or_scrolls_and_is_never_cut_off(page: tuple[str, _Page]) -> None:
    html, parsed = page
    assert len(parsed.tables) == html.count("<table") == 10
    for tag, attributes in parsed.tables:
        assert (tag, attributes.get("class"), attributes.get("tabindex")) == ("div", "scroll", "0")
    style = html[html.index("<style>") : html.index("</style>")]
    assert re.search(r"\.scroll \{[^}]*overflow-x: auto", style)
    assert "nowrap" not in style
    # Notes would be as wide as the table if they were captions.
    assert "<caption" not in html
    # An interval stays on one line; what stands before it may stand above it.
    assert re.search(r"% \[\d+,\N{NO-BREAK SPACE}\d+\]", html)
    assert not re.search(r"\[\d+, \d+\]</td>", html)


def test_a_merge_is_called_as_its_method_says(
    record: Maker, provenance: Provenance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_method(tmp_path, monkeypatch)
    rows = small_evaluation(record)
    others = [row for row in rows if row.model == "average"]
    for model in (NAME, f"{NAME}-2", "co-merge", "co-merge-default", "co-merge-2", "all-single", "gone"):
        rows += [row.model_copy(update={"model": model}) for row in others]
    found = compute_metrics(rows, CATEGORIES, provenance, GoalsConfig(), {})
    expected = ["Base", "Merged", "Average", LABEL, f"{LABEL} 2"]
    expected += ["Co-Merge (searched)", "Co-Merge (start)", "Co-Merge 2", "All-single", "gone"]
    tables = {table.title: table for table in terminal_tables(found)}
    assert tables["IP on test prompts"].header == ("Category", *expected)
    against = tables["Merged model against the others"]
    assert [row[0] for row in against.rows] == ["Base", *expected[2:], "Expert: violence"]
    assert "not a comparison at equal compute" in against.note
    html = render_report(found, [])
    plane = html[html.index('aria-label="Each model') :]
    plane = plane[: plane.index("</svg>")]
    for name in expected:
        assert name in plane
    # More models than styles: the cycle starts again.
    assert plane_plot(found).count("#5f8f3e") > 1


def test_without_all_single_nothing_is_said_of_it(metrics: MetricsReport) -> None:
    assert "All-single is trained" not in render_report(metrics, [])


def test_prompts_are_escaped(metrics: MetricsReport, record: Maker) -> None:
    nasty = '<script>alert(1)</script> " onerror="x'
    rows = [record(model, "a", prompt=nasty, shown=True, image=_png(0)) for model in ("base", "merged")]
    html = render_report(metrics, rows)
    assert "<script" not in html
    assert 'onerror="x' not in html


def test_examples_pair_one_prompt_and_seed(record: Maker) -> None:
    found = galleries(small_evaluation(record))
    assert [gallery.title for gallery in found] == ["violence", "hate", "held-out concepts"]
    assert [len(gallery.examples) for gallery in found] == [2, 2, 4]
    assert found[0].examples[0].before_flagged
    assert found[0].examples[0].after_flagged
    assert not found[0].examples[1].after_flagged


def test_plots_are_sound_svg_in_the_pages_ink_and_do_not_change(metrics: MetricsReport) -> None:
    for draw in (ip_plot, plane_plot):
        svg = draw(metrics)
        root = ElementTree.fromstring(svg)
        assert root.find("{http://www.w3.org/2000/svg}title") is not None
        assert "currentColor" in svg
        assert "#010203" not in svg
        assert svg == draw(metrics)
    curve = curve_plot({"<violence>": [(0, 1.0), (1, 2.0)]}, "x", "loss")
    assert "&lt;violence&gt;" in curve


def test_the_terminal_gets_every_table_with_even_rows(metrics: MetricsReport) -> None:
    tables = terminal_tables(metrics)
    assert tables[0].title == "IP on test prompts"
    assert len(tables) == 7
    for table in tables:
        assert {len(row) for row in table.rows} == {len(table.header)}
    by_title = {table.title: table for table in tables}
    row = by_title["IP on test prompts"].rows[0]
    assert [cell.partition("%")[0] for cell in row] == ["violence", "90.0", "10.0", "50.0"]
    experts = by_title["Each expert by itself"].rows
    assert [row[0] for row in experts] == ["violence"]
    assert experts[0][2].startswith("20.0%")
    assert experts[0][3] == "100.0%"
    verdicts = {row[0]: row[2] for row in by_title["Merged model against the others"].rows}
    assert verdicts["Base"] == verdicts["Average"] == "lower"


def test_the_second_judges_figures_stand_beside_the_judges(record: Maker, provenance: Provenance) -> None:
    # The second judge flags every second image of the base and three of ten of the merge, whatever the judge says.
    wanted = {"base": 5, "merged": 3, "average": 10}
    rows = [
        row.model_copy(update={"second_flagged": int(row.prompt_id.rpartition("-")[2]) < wanted[row.model]})
        if row.part is EvaluationSplit.TEST and row.model in wanted
        else row
        for row in small_evaluation(record)
    ]
    second = JudgeIdentity(name="other", version="2", threshold=0.4)
    both = provenance.model_copy(update={"second_judge": second})
    metrics = compute_metrics(rows, CATEGORIES, both, GoalsConfig(), {})
    assert {model: metrics.ip_second[model]["overall"].value for model in wanted} == {
        model: count / 10 for model, count in wanted.items()
    }
    assert {model: metrics.ip[model]["overall"].value for model in FLAGGED} == {
        model: count / 10 for model, count in FLAGGED.items()
    }
    table = next(table for table in terminal_tables(metrics) if table.title == "IP by two judges")
    assert table.header == ("Model", "Category", "IP by emoji", "IP by other")
    merged = {row[1]: [cell.partition("%")[0] for cell in row[2:]] for row in table.rows if row[0] == "Merged"}
    assert merged["overall"] == ["10.0", "30.0"]
    assert set(merged) == {"overall", *CATEGORIES}
    page = render_report(metrics, rows)
    assert "By a second judge" in page
    assert "other, version 2, threshold 0.4" in page
    alone = compute_metrics(small_evaluation(record), CATEGORIES, provenance, GoalsConfig(), {})
    assert alone.ip_second == {}
    assert "By a second judge" not in render_report(alone, rows)


def card_of(metrics: MetricsReport) -> str:
    """Return the card of a release with these figures."""
    info = ReleaseInfo(
        name="r",
        base=BaseModelIdentity(id="b", family="f", sha256="0" * 64),
        adapter_sha256="0" * 64,
        judge=metrics.provenance.judge,
        provenance={},
    )
    return write_card(info, "mit", {}, Measured.model_validate(metrics.model_dump()), None)


def partly_judged(record: Maker, provenance: Provenance, chose: bool | None) -> MetricsReport:
    """Return figures whose second judge covers "hate" alone: it flags three of ten images of each model."""
    rows = [
        row.model_copy(update={"second_flagged": int(row.prompt_id.rpartition("-")[2]) < 3})
        if row.part is EvaluationSplit.TEST and row.category == "hate"
        else row
        for row in small_evaluation(record)
    ]
    second = JudgeIdentity(name="other", version="2", threshold=0.4)
    told = provenance.model_copy(update={"second_judge": second, "second_chose": chose})
    return compute_metrics(rows, CATEGORIES, told, GoalsConfig(), {})


def test_a_second_judge_of_one_category_is_shown_with_what_it_does_not_judge(
    record: Maker, provenance: Provenance
) -> None:
    metrics = partly_judged(record, provenance, chose=False)
    # Neither the other category nor a mean over categories that the second judge has not seen.
    assert metrics.ip_second.keys() == {"base", "merged", "average", "violence"}
    assert {name for found in metrics.ip_second.values() for name in found} == {"hate"}
    table = next(table for table in terminal_tables(metrics) if table.title == "IP by two judges")
    assert [row[:2] for row in table.rows] == [(name, "hate") for name in ("Base", "Merged", "Average")]
    assert [[cell.partition("%")[0] for cell in row[2:]] for row in table.rows[:2]] == [
        ["90.0", "30.0"],
        ["10.0", "30.0"],
    ]
    assert table.note.endswith("It does not judge violence.")
    page = render_report(metrics, [])
    assert "It does not judge violence." in page
    assert "Base, test prompts by the second judge" in page
    card = card_of(metrics).partition("By a second judge")[2].partition("On benign prompts")[0]
    assert "It does not judge violence." in card
    assert [line.split("|")[1].strip() for line in card.splitlines() if line.startswith("| ")] == ["IP, %", "hate"]
    assert "30.0 [" in card


@pytest.mark.parametrize(
    ("chose", "said"),
    [
        (True, "second judge filters the data or chooses the merge too"),
        (False, "has chosen nothing"),
        (None, "It does"),
    ],
)
def test_what_a_second_judge_has_chosen_is_said_as_it_is(
    chose: bool | None, said: str, record: Maker, provenance: Provenance
) -> None:
    metrics = partly_judged(record, provenance, chose)
    note = next(table.note for table in terminal_tables(metrics) if table.title == "IP by two judges")
    assert said in note
    assert ("has chosen nothing" in note) is (chose is False)
    card = card_of(metrics)
    assert ("chose neither the data nor the merge" in card) is (chose is False)
    assert ("as well" in card) is (chose is True)


@pytest.mark.parametrize(
    ("chose", "said"),
    [(True, "By the judge that selected"), (False, "By one judge, which neither filters"), (None, "where it has also")],
)
def test_figures_by_the_judge_that_selected_are_called_so(
    chose: bool | None, said: str, record: Maker, provenance: Provenance
) -> None:
    told = provenance.model_copy(update={"judge_chose": chose})
    metrics = compute_metrics(small_evaluation(record), CATEGORIES, told, GoalsConfig(), {})
    tables = {table.title: table.note for table in terminal_tables(metrics)}
    assert said in tables["IP on test prompts"]
    assert said in render_report(metrics, [])
    card = card_of(metrics)
    assert ("the judge that selected" in card) is (chose is True)
