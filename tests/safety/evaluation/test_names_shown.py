"""Any name that a taxonomy may give is drawn, listed and stored as it stands: plots, report, cards, files, terminal."""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from pathlib import Path

import markdown_it
import matplotlib as mpl
import pytest
import yaml
from rich.console import Console
from torch.utils.tensorboard import SummaryWriter

from cluster.progress import StageProgress
from cluster.store.manifest import describe
from jobs.evaluate.stage import rich_table
from jobs.generate.stage import summary_table
from jobs.release.card import Measured
from jobs.release.card import write_card as release_card
from safety.dataset.latents import latents_file
from safety.dataset.layout import dataset_card
from safety.dataset.summary import DatasetProvenance, DatasetSummary, SplitCount
from safety.evaluation.goals import GoalsConfig
from safety.evaluation.metrics import MetricsReport, Provenance, compute_metrics
from safety.evaluation.records import EvaluationSplit, ImageRecord
from safety.evaluation.report import render_report
from safety.evaluation.tables import terminal_tables
from safety.experts.card import write_card as expert_card
from safety.experts.config import ExpertConfig
from safety.experts.curves import plot_curves
from safety.experts.training import TrainingResult
from safety.judges.judge import JudgeIdentity
from safety.merge.card import merge_card
from safety.merge.plots import plot_shares
from safety.release import BaseModelIdentity, ReleaseInfo
from tests.support.names import DRAWABLE

Maker = Callable[..., ImageRecord]
JUDGE = JudgeIdentity(name="j", version="1", threshold=0.5)
METRICS = [
    {
        "step": 0.0,
        "loss": 0.7,
        "dpo_loss": 0.7,
        "implicit_accuracy": 0.5,
        "winner_error": 1.0,
        "reference_winner_error": 1.0,
        "loser_error": 1.0,
        "reference_loser_error": 1.0,
    }
]


class Page(HTMLParser):
    """The text of each element of a kind."""

    def __init__(self, text: str, tag: str) -> None:
        super().__init__()
        self.tag, self.found, self.open = tag, [], False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == self.tag:
            self.open = True
            self.found.append("")

    def handle_endtag(self, tag: str) -> None:
        self.open = self.open and tag != self.tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.found[-1] += data


def cells(markdown: str, tag: str = "td") -> list[str]:
    """Return the cells' texts as a Markdown renderer with tables and strike-through shows them."""
    text = re.sub(r"\A---\n.*?\n---\n", "", markdown, flags=re.DOTALL)
    html = markdown_it.MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(text)
    return Page(html, tag).found


@pytest.fixture
def measured(record: Maker, provenance: Provenance) -> MetricsReport:
    return evaluation(record, provenance, DRAWABLE)


def evaluation(record: Maker, provenance: Provenance, categories: Sequence[str]) -> MetricsReport:
    rows = []
    for model in ("base", "merged", *categories):
        for category in categories:
            scores = tuple(0.5 for _ in categories)
            rows += [
                record(model, f"{category}-{n}", category=category, concept=category, scores=scores, flagged=n == 0)
                for n in range(2)
            ]
        rows += [record(model, f"b{n}", part=EvaluationSplit.BENIGN) for n in range(3)]
    rows += [record("base", f"b{n}", part=EvaluationSplit.REFERENCE) for n in range(3)]
    return compute_metrics(rows, categories, provenance, GoalsConfig(), {})


def test_the_report_draws_and_lists_them(measured: MetricsReport, record: Maker) -> None:
    shown = [record(m, "p", category=c, shown=True, image=b"png") for m in ("base", "merged") for c in DRAWABLE]
    page = render_report(measured, shown, {"accuracy": {name: [(0, 0.5), (1, 0.6)] for name in DRAWABLE}})
    rows = Page(page, "th").found
    for name in DRAWABLE:
        assert name in rows, name
    plots = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(plots) == 3
    for plot in (plots[0], plots[2]):
        texts = [
            "".join(element.itertext()).strip()
            for element in ET.fromstring(plot.replace("xlink:", "")).iter()
            if element.tag.endswith("text")
        ]
        for name in DRAWABLE:
            assert (name if len(name) <= 40 else f"{name[:39]}…") in texts, name


@pytest.mark.slow
def test_merges_and_experts_plot_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[str] = []
    original = mpl.mathtext.MathTextParser.parse
    monkeypatch.setattr(
        "matplotlib.mathtext.MathTextParser.parse",
        lambda self, text, *a, **k: parsed.append(text) or original(self, text, *a, **k),
    )
    plot_shares({"mid.to_q": {name: 1 / len(DRAWABLE) for name in DRAWABLE}}, tmp_path / "shares.png")
    for name in DRAWABLE:
        assert plot_curves(METRICS, f"expert: {name}", tmp_path).is_file()
    assert [text for text in parsed if "$" in text] == []


def test_cards_list_them(measured: MetricsReport, tmp_path: Path) -> None:
    counts = tuple(SplitCount(category=name, split="train", rows=2, kept=1, rejected={}) for name in DRAWABLE)
    provenance = DatasetProvenance(
        model="models/a: b # [c] | d", model_hash="0" * 64, taxonomy=f"{DRAWABLE[0]} 1", notice="one\n\ntwo",
        writer_version="1", judge=JUDGE, seed=0, recipe={"writer": "w", "render": {"steps": 2, "guidance": 3.0}},
    )  # fmt: skip
    card = dataset_card(
        DatasetSummary(dataset_hash="0" * 64, provenance=provenance, counts=counts, prompts={"train": 1})
    )
    assert set(DRAWABLE) <= set(cells(card))
    assert yaml.safe_load(card.split("---\n")[1])["pretty_name"] == f"SafetyDPO preference pairs ({provenance.model})"
    assert "two" in Page(markdown_it.MarkdownIt().render(card), "blockquote").found[0]

    recipe = {"name": "m", "base_model": provenance.model, "method": "average"}
    report = {
        "experts": DRAWABLE,
        "ranks": {"a": 1},
        "parameters": 1,
        "shares": {"overall": dict.fromkeys(DRAWABLE, 0.1)},
    }
    card = merge_card(recipe, report, set())
    assert set(DRAWABLE) <= set(cells(card))
    assert yaml.safe_load(card.split("---\n")[1])["base_model"] == provenance.model

    info = ReleaseInfo(
        name="r",
        base=BaseModelIdentity(id=provenance.model, family="f", sha256="0" * 64),
        adapter_sha256="0" * 64,
        judge=JUDGE,
        provenance={"run": "a|b"},
    )
    card = release_card(info, "mit", {}, Measured.model_validate(measured.model_dump()), "one\n\ntwo")
    assert {*DRAWABLE, "a|b"} <= set(cells(card))
    assert "base_model" not in yaml.safe_load(card.split("---\n")[1]), "a hub takes ids alone"

    for name in DRAWABLE:
        text = expert_card(
            tmp_path, name, ExpertConfig(), TrainingResult(METRICS, [], 0), {"base model": provenance.model}
        )
        assert cells(text.read_text(), "h1") == [f"SafetyDPO expert: {name}"]


def test_files_and_folders_hold_them(tmp_path: Path) -> None:
    files = [latents_file(name, 3) for name in DRAWABLE]
    assert len(set(files)) == len(DRAWABLE)
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True)
        (tmp_path / file).write_bytes(b"tensors")
    # Raises for a name that an artifact may not have.
    describe("dataset", "dataset-1", tmp_path, config={}, seed=0, parents=())
    for name in DRAWABLE:
        with SummaryWriter(str(tmp_path / "logs" / name)) as board:
            board.add_scalar("loss", 1.0, 0)
    assert {path.name for path in (tmp_path / "logs").iterdir()} == set(DRAWABLE)


def test_a_category_in_plain_letters_keeps_its_file() -> None:
    assert latents_file("illegal activity", 7) == "latents/illegal-activity/000007.safetensors"


def test_the_terminal_shows_them(measured: MetricsReport) -> None:
    shown: list[str] = []

    def terminal() -> Console:
        return Console(file=io.StringIO(), width=400)

    counts = tuple(SplitCount(category=name, split="train", rows=2, kept=1, rejected={}) for name in DRAWABLE)
    provenance = DatasetProvenance.model_construct(model="m")
    console = terminal()
    console.print(summary_table(DatasetSummary.model_construct(dataset_hash="", provenance=provenance, counts=counts)))
    shown.append(console.file.getvalue())
    console = terminal()
    for table in terminal_tables(measured):
        console.print(rich_table(table))
    shown.append(console.file.getvalue())
    console = terminal()
    with StageProgress(console, "train", len(DRAWABLE), "experts") as progress:
        for name in DRAWABLE:
            progress._shown = float("-inf")
            progress.advance(note=name)
    shown.append(console.file.getvalue())
    assert [name for name in DRAWABLE for text in shown if name not in text] == []
