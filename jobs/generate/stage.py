"""Makes the preference dataset: prompts, pairs of images, verdicts, latents; resumes after each finished group."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from cluster.errors import CorruptArtifact
from cluster.progress import StageProgress
from cluster.store.limits import limit_of
from cluster.store.manifest import MANIFEST
from jobs.generate.actors import stream_groups
from jobs.generate.groups import FIGURES_FILE, GroupStore, dump_figures, stored_files
from jobs.generate.limit import limited
from jobs.generate.prompts import SOURCES, prompts_version, run_prompts, write_cards
from jobs.generate.writing import run_recipe, write_pairs
from jobs.run.artifacts import ArtifactRef, StageContext, artifact_ref, finished, publish
from jobs.run.metrics import GROUP_SECONDS, IMAGES, KEPT, ROWS
from jobs.run.placement import placed_unless_cheap
from jobs.run.places import judge_place
from jobs.run.work_area import RERUN
from safety.dataset.filter import RejectionReason
from safety.dataset.group_files import GroupFigures
from safety.dataset.latents import EMPTY_FILE, write_empty
from safety.dataset.layout import summarise, write_layout
from safety.dataset.plan import DatasetPlan, Group, plan_dataset
from safety.dataset.summary import DatasetProvenance, DatasetSummary, SplitCount
from safety.errors import ConfigError
from safety.judges.judge import judge_identity
from safety.prompts.card import SourceCard
from safety.taxonomy import Taxonomy

KIND, STAGE = "dataset", "generate"
BARREN_GROUPS, BARREN_ROWS = 3, 48
"""Groups of a category, and rows in them, that may keep nothing before the stage gives up."""
LAYOUT = 2
"""Version of a dataset's files: another one is another artifact, which readers of the old one would not find."""
GROUP_MANIFEST_BYTES = 600
"""The bytes of a group in the manifest: up to four files, of some 150 bytes each."""


def run(context: StageContext) -> ArtifactRef:
    """Generate the run's dataset and return its name; published and finished parts are reused.

    Raises:
        ConfigError: A setting does not fit the model, the judge or the taxonomy, or the dataset has too many groups.
        EmptyDatasetError: Filtering left a category without a row, at the end or in its first groups.
        ImpossibleResources: The cluster can never run the actors.
    """
    taxonomy = context.run.load_taxonomy()
    provenance = describe(context, taxonomy)
    settings = dataset_settings(context, taxonomy, provenance)
    ref = artifact_ref(context, KIND, settings)
    groups = GroupStore(context.store, ref)
    if _is_published(context, ref, groups):
        return ref
    config = context.run.generate
    found = run_prompts(context.run, taxonomy, written=write_pairs(context, taxonomy))
    cards = found.cards
    if cards:
        context.console.print(sources_table(cards))
    plan = plan_dataset(limited(found.prompts, config.most), config.group_size, context.run.run.seed, found.pictures)
    require_room(plan, config.group_size)
    figures = render_missing(context, plan, taxonomy, groups)
    # Another run of the same dataset may have published it meanwhile, and cleared the work area.
    if _is_published(context, ref, groups):
        return ref
    summary = summarise(plan, provenance, figures)

    def fill_all(folder: Path) -> None:
        fill(folder, plan, summary, figures, groups)
        write_cards(folder, cards)

    publish(context, ref, settings, [], fill_all, stored_files(figures))
    context.store.prune(*ref)
    groups.clear()
    context.console.print(summary_table(summary))
    context.console.print(f"dataset {ref.id}, hash {summary.dataset_hash}")
    return ref


def _is_published(context: StageContext, ref: ArtifactRef, groups: GroupStore) -> bool:
    """Return whether the dataset is published, and then delete what a run has left that died right after publishing."""
    if not finished(context, ref, groups.reopen):
        return False
    context.console.print(f"dataset {ref.id}: already published")
    if groups.area.names():
        context.store.prune(*ref)
        groups.clear()
    return True


def require_room(plan: DatasetPlan, group_size: int) -> None:
    """Raise ConfigError, before anything is rendered, for more groups than a dataset's manifest can name."""
    most = limit_of(f"artifacts/{KIND}/id/{MANIFEST}").size // GROUP_MANIFEST_BYTES
    if len(plan.groups) > most:
        raise ConfigError(
            f"{plan.rows} rows in groups of {group_size} are {len(plan.groups)} groups, and a dataset holds {most}",
            field="generate.group_size",
            fix=f"raise it to {math.ceil(group_size * len(plan.groups) / most)}, or divide the taxonomy among several runs",
        )


def describe(context: StageContext, taxonomy: Taxonomy) -> DatasetProvenance:
    """Return the dataset's provenance; raise ConfigError when the model or the judge is missing."""
    run = context.run
    judge = placed_unless_cheap(judge_place(run), judge_identity, run.generate.judge, taxonomy)
    return DatasetProvenance(
        model=run.model.path,
        model_hash=context.model.sha256,
        taxonomy=f"{taxonomy.name} {taxonomy.version}",
        notice=taxonomy.notice,
        writer_version=prompts_version(run, run_recipe(run)),
        judge=judge,
        seed=run.run.seed,
        recipe=run.generate.recipe() | ({} if run.prompts is None else {"writer": SOURCES}),
    )


def dataset_settings(context: StageContext, taxonomy: Taxonomy, provenance: DatasetProvenance) -> dict[str, Any]:
    """Return everything that the rows depend on; placement on the cluster is not part of it."""
    return {
        "layout": LAYOUT,
        "model": context.model.model_dump(mode="json"),
        "taxonomy": taxonomy.model_dump(mode="json"),
        # Not what the model is called, or where it lies: its content is in "model".
        "provenance": provenance.model_dump(mode="json", exclude={"model"}),
    }


def render_missing(
    context: StageContext, plan: DatasetPlan, taxonomy: Taxonomy, groups: GroupStore
) -> dict[int, GroupFigures]:
    """Render and judge the groups that are not in the store yet; return the figures of all."""
    found = _planned(plan, groups.finished())
    if found:
        context.console.print(f"{len(found)} of {len(plan.groups)} groups are finished already")
    missing = [group for group in plan.groups if group.index not in found]
    if missing:
        found |= groups.whole(_render(context, plan, missing, taxonomy, groups, BarrenCategories(found.values())))
    lost = [group.index for group in plan.groups if group.index not in found]
    if lost:
        raise CorruptArtifact(
            f"{len(lost)} groups are missing or corrupt right after they were made",
            field=f"{groups.area.place}groups/{lost[0]:06d}",
            fix=RERUN,
        )
    return found


def _planned(plan: DatasetPlan, found: Mapping[int, GroupFigures]) -> dict[int, GroupFigures]:
    """Return those of the finished groups that the plan has."""
    return {group.index: found[group.index] for group in plan.groups if group.index in found}


def _render(
    context: StageContext,
    plan: DatasetPlan,
    missing: Sequence[Group],
    taxonomy: Taxonomy,
    groups: GroupStore,
    barren: BarrenCategories,
) -> dict[int, GroupFigures]:
    """Render, judge and store groups; return their figures."""
    made = {}
    rows, left = (sum(len(group.rows) for group in several) for several in (plan.groups, missing))
    kept = moved = 0
    with StageProgress(context.console, "generate", rows, "rows", done=rows - left) as progress:
        for group in stream_groups(missing, context.run.model, taxonomy, context.run.generate, groups):
            _count(context.run.run.name, group)
            barren.add(group)
            made[int(group["index"])] = GroupFigures.model_validate_json(group["figures"])
            kept += int(group["kept"])
            moved += bool(group["moved"])
            progress.advance(int(group["rows"]), f"{kept} kept")
    if moved:
        context.console.print(f"{moved} of {len(missing)} groups were judged on another node than rendered them")
    return made


class BarrenCategories:
    """Stops a generation whose first groups of a category keep nothing: the rest would not either, and cost as much."""

    def __init__(self, before: Iterable[GroupFigures] = ()) -> None:
        """Begin with the groups that earlier starts have finished."""
        self._rows: Counter[str] = Counter()
        self._groups: Counter[str] = Counter()
        self._outcomes: dict[str, Counter[str]] = {}
        for found in before:
            outcomes = Counter({KEPT: sum(count.kept for count in found.counts)})
            for count in found.counts:
                outcomes.update({str(reason): rows for reason, rows in count.rejected.items()})
            self._note(found.category, found.rows, outcomes)

    def _note(self, category: str, rows: int, outcomes: Mapping[str, int]) -> None:
        self._groups[category] += 1
        self._rows[category] += rows
        self._outcomes.setdefault(category, Counter()).update(outcomes)

    def add(self, group: Mapping[str, Any]) -> None:
        """Count a finished group; raise EmptyDatasetError when its category has kept nothing in so many."""
        category = str(group["category"])
        self._note(category, int(group["rows"]), json.loads(group["outcomes"]))
        outcomes, rows = self._outcomes[category], self._rows[category]
        if outcomes[KEPT] == 0 and self._groups[category] >= BARREN_GROUPS and rows >= BARREN_ROWS:
            rejected = {RejectionReason(name): count for name, count in outcomes.items() if name != KEPT}
            SplitCount(category=category, split="train", rows=rows, kept=0, rejected=rejected).check()


def _count(run: str, group: Mapping[str, Any]) -> None:
    """Report a finished group to Prometheus."""
    IMAGES.add(group["images"], run=run, stage=STAGE)
    GROUP_SECONDS.observe(group["seconds"], run=run, stage=STAGE)
    for outcome, rows in json.loads(group["outcomes"]).items():
        ROWS.add(rows, run=run, category=group["category"], outcome=outcome)


def fill(
    folder: Path, plan: DatasetPlan, summary: DatasetSummary, figures: dict[int, GroupFigures], groups: GroupStore
) -> None:
    """Write those of a dataset's files that no worker has written, into an empty folder: they hold no image but the grid."""
    write_empty(folder / EMPTY_FILE, groups.read_empty())
    (folder / FIGURES_FILE).write_bytes(dump_figures(figures))
    write_layout(folder, plan, summary, figures, lambda number: groups.samples(number, figures[number]))


def sources_table(cards: Sequence[SourceCard]) -> Table:
    """Return a table of what each source gave: lines = used + merged + refused."""
    table = Table(title="prompt sources", title_justify="left")
    for name in ("for", "form", "file", "lines", "used", "merged", "recurring", "with pictures", "refused"):
        table.add_column(name, overflow="fold")
    for card in cards:
        counts = (str(number) for number in (card.lines, card.rows, card.merged, card.recurring, card.pictures))
        table.add_row(card.role, card.source, escape(card.file), *counts, escape(card.describe_refused()))
    return table


def summary_table(summary: DatasetSummary) -> Table:
    """Return a table of the rows, kept and rejected, by category and split."""
    table = Table(title=f"{summary.rows} rows in = {summary.kept} kept + {summary.rows - summary.kept} rejected")
    for name, justify in (("category", "left"), ("split", "left"), ("rows", "right"), ("kept", "right")):
        table.add_column(name, justify="right" if justify == "right" else "left")
    table.add_column("rejected")
    for count in summary.counts:
        reasons = ", ".join(f"{reason} {number}" for reason, number in count.rejected.items())
        table.add_row(escape(count.category), count.split, str(count.rows), str(count.kept), reasons)
    return table
