"""A dataset's folder: the files that its workers have stored by groups, and the small ones written last, from figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path

import jinja2
import torch
from torch import Tensor

from safety.dataset.group_files import SAMPLE_PAIRS, GroupFigures, read_samples
from safety.dataset.plan import RENDERED_SPLITS, DatasetPlan
from safety.dataset.published import dump_rejected, rejected_file
from safety.dataset.summary import (
    BENIGN,
    DatasetProvenance,
    DatasetSummary,
    SplitCount,
    add_counts,
    content_digest,
    count_rows,
    dataset_hash,
)
from safety.images import encode_png, grid
from safety.markdown import code, head, plain, quoted
from safety.prompts.files import PROMPTS_FILE, write_prompt_file

SUMMARY_FILE, GRID_FILE, CARD_FILE = "summary.json", "grid.png", "README.md"
GRID_CATEGORIES = 24
"""Most categories that the grid of samples shows."""
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
Samples = Callable[[int], bytes | None]
"""Returns the strip of a group's samples (``group_samples``), or None when there is none."""


def summarise(plan: DatasetPlan, provenance: DatasetProvenance, groups: Mapping[int, GroupFigures]) -> DatasetSummary:
    """Return the summary of a dataset from its groups' figures; every row is kept or rejected, or this raises.

    Raises:
        EmptyDatasetError: None of the rows of a rendered split of a category is kept.
        RuntimeError: Rows are missing or too many.
    """
    parts: list[SplitCount] = []
    for category in plan.categories:
        parts += count_rows(plan.refused.get(category, ()))
        parts += [count for group in plan.in_category(category) for count in groups[group.index].counts]
    counts = add_counts(parts)
    for count in counts:
        if count.split in RENDERED_SPLITS:
            count.check()
    splits = [*(pair.split for pair in plan.prompts.pairs), *(f"benign_{row.split}" for row in plan.prompts.benign)]
    refused = [record for records in plan.refused.values() for record in records]
    summary = DatasetSummary(
        dataset_hash=dataset_hash({number: found.digest for number, found in groups.items()}, content_digest(refused)),
        provenance=provenance,
        counts=counts,
        published=plan.published,
        prompts={split: splits.count(split) for split in dict.fromkeys(splits)},
    )
    if summary.rows != plan.rows:
        raise RuntimeError(f"{plan.rows} rows went in and {summary.rows} came out")
    return summary


def write_layout(
    folder: Path, plan: DatasetPlan, summary: DatasetSummary, groups: Mapping[int, GroupFigures], samples: Samples
) -> None:
    """Write what a dataset has beside its groups' files: prompts, refused rows, summary, grid and card.

    Args:
        folder: An empty folder.
        plan: The dataset's plan.
        summary: Its summary.
        groups: The figures of all of its groups.
        samples: Reads the samples of the few groups that the grid shows.
    """
    write_prompt_file(plan.prompts, folder / PROMPTS_FILE)
    refused = [record for records in plan.refused.values() for record in records]
    if refused:
        path = folder / rejected_file(None)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(dump_rejected(refused))
    (folder / SUMMARY_FILE).write_text(summary.model_dump_json(indent=1) + "\n", encoding="utf-8")
    (folder / CARD_FILE).write_text(dataset_card(summary), encoding="utf-8")
    shown = sample_grid(plan, groups, samples)
    if shown is not None:
        (folder / GRID_FILE).write_bytes(encode_png(shown))


def sample_grid(plan: DatasetPlan, groups: Mapping[int, GroupFigures], samples: Samples) -> Tensor | None:
    """Return kept pairs as one image, one row per category, each unsafe image left of its safe one; None without one."""
    lines = []
    for category in [name for name in plan.categories if name != BENIGN][:GRID_CATEGORIES]:
        able = [group.index for group in plan.in_category(category) if groups[group.index].kept_for_training]
        chosen = able[:: max(1, len(able) // SAMPLE_PAIRS)][:SAMPLE_PAIRS]
        strips = [strip for strip in map(samples, chosen) if strip is not None]
        # One of each group first, then the others' second ones, until there are enough.
        pairs = [read_samples(strip) for strip in strips]
        ordered = [found[depth] for depth in range(SAMPLE_PAIRS) for found in pairs if depth < len(found)]
        if ordered:
            lines.append([image for pair in ordered[:SAMPLE_PAIRS] for image in pair])
    if not lines:
        return None
    blank = torch.full_like(lines[0][0], 255)
    return grid(torch.stack([image for line in lines for image in _filled(line, blank)]), 2 * SAMPLE_PAIRS)


def _filled(line: Sequence[Tensor], blank: Tensor) -> list[Tensor]:
    return [*line, *[blank] * (2 * SAMPLE_PAIRS - len(line))]


def dataset_card(summary: DatasetSummary) -> str:
    """Return the data card, a README with the header that dataset hubs read."""
    text = resources.files("safety.dataset").joinpath("card.md.j2").read_text(encoding="utf-8")
    size = next((name for limit, name in SIZES if summary.kept < limit), "n>1M")
    splits = [
        split
        for split in RENDERED_SPLITS
        if any(c.split == split and c.category != BENIGN and c.kept for c in summary.counts)
    ]
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False)
    environment.filters.update(plain=plain, code=code, quoted=quoted, head=head)
    template = environment.from_string(text)
    return (
        template.render(
            size=size,
            splits=splits,
            rows=summary.rows,
            kept=summary.kept,
            **{name: getattr(summary, name) for name in type(summary).model_fields},
        )
        + "\n"
    )
