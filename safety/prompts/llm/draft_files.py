"""A language model's drafts as files: a parquet table of all draws, a card with counts by reason, and its plot."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from pydantic import ValidationError

from safety.errors import ArtifactFormatError
from safety.families.identity import file_hash
from safety.markdown import plain
from safety.parquet import read_parquet
from safety.plotting import plain_text, short
from safety.prompts.collection import WrittenPairs
from safety.prompts.llm.draft import Draft
from safety.prompts.sources.source import SourceContent, SourceRow
from safety.taxonomy import Taxonomy

DRAFTS_FILE, CARD_FILE, PLOT_FILE = "drafts.parquet", "WRITER.md", "drafts.png"
SCHEMA = pa.schema(
    [
        ("concept", pa.string()),
        ("draw", pa.int64()),
        ("state", pa.string()),
        ("reason", pa.string()),
        ("prompt", pa.string()),
        ("safe", pa.string()),
    ]
)
KEPT, REJECTED = "#228833", ("#4477aa", "#ee6677", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb", "#222255", "#994f00")


def write_drafts(drafts: Sequence[Draft], path: Path) -> None:
    """Write the drafts in their order."""
    pq.write_table(pa.Table.from_pylist([draft.model_dump(mode="json") for draft in drafts], schema=SCHEMA), path)


def read_drafts(path: Path) -> list[Draft]:
    """Read drafts; raise ArtifactFormatError when the file holds none, SchemaError for other columns."""
    misfit, field, fix = f"{path.name} holds no drafts", "prompts.writer", "run the generation again"
    table = read_parquet(path, SCHEMA, misfit=misfit, field=field, fix=fix)
    try:
        return [Draft.model_validate(row) for row in table.to_pylist()]
    except ValidationError as error:
        raise ArtifactFormatError(f"{misfit}: {error}", field=field, fix=fix) from error


def written_pairs(model: str, path: Path, taxonomy: Taxonomy) -> WrittenPairs:
    """Return the pairs of a drafts' file, with the rejected ones counted."""
    categories = {concept.name: concept.category for concept in taxonomy.concepts}
    drafts = read_drafts(path)
    content = SourceContent([], len(drafts))
    for draft in drafts:
        if draft.kept and draft.prompt is not None:
            labels = (categories[draft.concept],)
            content.rows.append(SourceRow(draft.draw, draft.prompt, draft.safe, labels, draft.concept))
        else:
            content.refused[str(draft.reason)] += 1
    return WrittenPairs(model, file_hash(path), content)


def outcomes(drafts: Sequence[Draft], taxonomy: Taxonomy) -> dict[str, Counter[str]]:
    """Return the draws of each category by outcome: "kept", or the reason of the rejection."""
    categories = {concept.name: concept.category for concept in taxonomy.concepts}
    found: dict[str, Counter[str]] = {concept.category: Counter() for concept in taxonomy.concepts}
    for draft in drafts:
        found[categories[draft.concept]]["kept" if draft.kept else str(draft.reason)] += 1
    return found


def draft_card(drafts: Sequence[Draft], taxonomy: Taxonomy, model: str) -> str:
    """Return the card as Markdown: draws in = kept + rejected, by category and reason."""
    found = outcomes(drafts, taxonomy)
    kept = sum(draft.kept for draft in drafts)
    lines = [
        "# Prompts written by a language model",
        "",
        f"{plain(model)}: {len(drafts)} draws = {kept} pairs + {len(drafts) - kept} rejected. A rejected draw is drawn again, "
        "as often as `prompts.writer.rounds` says.",
        "",
        "| category | draws | pairs | rejected |",
        "|---|---|---|---|",
    ]
    for category, counts in found.items():
        reasons = ", ".join(f"{reason} {count}" for reason, count in counts.most_common() if reason != "kept") or "0"
        lines.append(f"| {plain(category)} | {counts.total()} | {counts['kept']} | {plain(reasons)} |")
    return "\n".join([*lines, "", f"![Draws by outcome]({PLOT_FILE})", ""])


@plain_text()
def plot_outcomes(drafts: Sequence[Draft], taxonomy: Taxonomy, path: Path) -> None:
    """Draw each category's draws by outcome as stacked bars to a PNG."""
    found = outcomes(drafts, taxonomy)
    reasons = [reason for reason, _ in sum(found.values(), Counter[str]()).most_common() if reason != "kept"]
    figure = Figure(figsize=(8, 1.8 + 0.35 * len(found)), layout="constrained")
    axes = figure.subplots()
    left = [0] * len(found)
    for index, outcome in enumerate(["kept", *reasons]):
        values = [counts[outcome] for counts in found.values()]
        colour = KEPT if outcome == "kept" else REJECTED[(index - 1) % len(REJECTED)]
        axes.barh(range(len(found)), values, left=left, color=colour, label=outcome.replace("_", " "))
        left = [start + value for start, value in zip(left, values, strict=True)]
    axes.set_yticks(range(len(found)), [short(category) for category in found], fontsize=8)
    axes.invert_yaxis()
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("draws")
    figure.legend(loc="outside upper center", ncols=4, fontsize=8, frameon=False)
    figure.savefig(path, dpi=120)


def write_draft_files(drafts: Sequence[Draft], taxonomy: Taxonomy, model: str, folder: Path) -> None:
    """Write the table, the card and the plot into a folder."""
    write_drafts(drafts, folder / DRAFTS_FILE)
    plot_outcomes(drafts, taxonomy, folder / PLOT_FILE)
    (folder / CARD_FILE).write_text(draft_card(drafts, taxonomy, model), encoding="utf-8")
