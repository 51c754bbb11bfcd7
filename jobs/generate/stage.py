"""Makes the preference dataset: prompts, pairs of images, verdicts, latents; resumes after each finished group."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from cluster.progress import StageProgress
from jobs.generate.actors import GroupStore, stream_groups
from jobs.run.artifacts import ArtifactRef, StageContext, artifact_ref, finished, publish
from jobs.run.metrics import GROUP_SECONDS, IMAGES, ROWS
from jobs.run.placement import placed_unless_cheap
from jobs.run.places import judge_place
from safety.dataset.layout import DatasetWriter
from safety.dataset.plan import DatasetPlan, plan_dataset
from safety.dataset.summary import BENIGN, DatasetProvenance, DatasetSummary
from safety.families.family import model_folder
from safety.judges.judge import judge_identity
from safety.prompts.writer import write_prompts, writers
from safety.release import model_hash
from safety.taxonomy import Taxonomy

KIND, STAGE = "dataset", "generate"


def run(context: StageContext) -> ArtifactRef:
    """Generate the run's dataset and return its name; published and finished parts are reused.

    Raises:
        ConfigError: A setting does not fit the model, the judge or the taxonomy.
        EmptyDatasetError: Filtering left a category without a row.
        ImpossibleResources: The cluster can never run the actors.
    """
    taxonomy = context.run.load_taxonomy()
    provenance = describe(context, taxonomy)
    settings = dataset_settings(context, taxonomy, provenance)
    ref = artifact_ref(context, KIND, settings)
    groups = GroupStore(context.store, ref)
    if finished(context, ref):
        context.console.print(f"dataset {ref.id}: already published and verified")
        # Left by a run that died between publishing and deleting them.
        groups.clear()
        return ref
    config = context.run.generate
    prompts = write_prompts(config.writer, taxonomy, config.counts, context.run.run.seed)
    plan = plan_dataset(prompts, config.group_size, context.run.run.seed)
    render_missing(context, plan, taxonomy, groups)
    summaries: list[DatasetSummary] = []
    publish(context, ref, settings, [], lambda folder: summaries.append(fill(folder, plan, provenance, groups)))
    groups.clear()
    for summary in summaries:
        context.console.print(summary_table(summary))
        context.console.print(f"dataset {ref.id}, hash {summary.dataset_hash}")
    return ref


def describe(context: StageContext, taxonomy: Taxonomy) -> DatasetProvenance:
    """Return the dataset's provenance; raise ConfigError when the model or the judge is missing."""
    run = context.run
    judge = placed_unless_cheap(judge_place(run), judge_identity, run.generate.judge, taxonomy)
    return DatasetProvenance(
        model=run.model.path,
        model_hash=model_hash(model_folder(run.model.path)),
        taxonomy=f"{taxonomy.name} {taxonomy.version}",
        notice=taxonomy.notice,
        writer_version=writers[run.generate.writer]().version,
        judge=judge,
        seed=run.run.seed,
        recipe=run.generate.recipe(),
    )


def dataset_settings(context: StageContext, taxonomy: Taxonomy, provenance: DatasetProvenance) -> dict[str, Any]:
    """Return everything that the rows depend on; placement on the cluster is not part of it."""
    return {
        "model": context.run.model.model_dump(mode="json"),
        "taxonomy": taxonomy.model_dump(mode="json"),
        "provenance": provenance.model_dump(mode="json"),
    }


def render_missing(context: StageContext, plan: DatasetPlan, taxonomy: Taxonomy, groups: GroupStore) -> None:
    """Render and judge the groups that are not in the store yet."""
    done = groups.verified()
    missing = [group for group in plan.groups if group.index not in done]
    if done:
        context.console.print(f"{len(done)} of {len(plan.groups)} groups are finished already")
    if not missing:
        return
    rows, left = (sum(len(group.records) for group in groups) for groups in (plan.groups, missing))
    kept = moved = 0
    with StageProgress(context.console, "generate", rows, "rows", done=rows - left) as progress:
        for group in stream_groups(missing, context.run.model, taxonomy, context.run.generate, groups):
            _count(context.run.run.name, group)
            kept += int(group["kept"])
            moved += bool(group["moved"])
            progress.advance(int(group["rows"]), f"{kept} kept")
    if moved:
        context.console.print(f"{moved} of {len(missing)} groups were judged on another node than rendered them")


def _count(run: str, group: Mapping[str, Any]) -> None:
    """Report a finished group to Prometheus."""
    IMAGES.add(group["images"], run=run, stage=STAGE)
    GROUP_SECONDS.observe(group["seconds"], run=run, stage=STAGE)
    for outcome, rows in json.loads(group["outcomes"]).items():
        ROWS.add(rows, run=run, category=group["category"], outcome=outcome)


def fill(folder: Path, plan: DatasetPlan, provenance: DatasetProvenance, groups: GroupStore) -> DatasetSummary:
    """Write the dataset's files into an empty folder; every row is kept or rejected, or this raises."""
    writer = DatasetWriter(folder, plan.prompts, provenance, groups.read_empty())
    for category in plan.categories:
        records = list(plan.refused.get(category, ()))
        for group in plan.groups:
            if group.category == category:
                records += groups.read(group.index)
        if category == BENIGN:
            writer.add_benign(records)
        else:
            writer.add_category(category, records)
    summary = writer.finish()
    if summary.rows != plan.rows:
        raise RuntimeError(f"{plan.rows} rows went in and {summary.rows} came out")
    return summary


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
