"""The stage that measures the base, every expert and every merge: metrics.json, report.html, tables in the terminal."""

from __future__ import annotations

import platform
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

import ray
from rich.markup import escape
from rich.table import Table

from cluster.hashing import config_hash
from cluster.progress import StageProgress
from cluster.store.manifest import code_version
from jobs.evaluate.actors import EvaluationInputs, FinishedGroups, evaluate_groups
from jobs.evaluate.config import EvaluateConfig
from jobs.evaluate.reference import reference_folder, reference_moments
from jobs.run.artifacts import ArtifactRef, StageContext, artifact_ref, finished, publish
from jobs.run.metrics import GROUP_SECONDS, IMAGES, IP
from jobs.run.placement import placed_unless_cheap
from jobs.run.places import evaluate_place
from safety.errors import ConfigError
from safety.evaluation.learning import Curves, read_curves
from safety.evaluation.lpips import lpips_name
from safety.evaluation.metrics import METRICS_FILE, MetricsReport, Provenance, compute_metrics
from safety.evaluation.plan import MERGED, plan_evaluation
from safety.evaluation.records import RecordTable
from safety.evaluation.report import render_report
from safety.evaluation.tables import ReportTable, terminal_tables
from safety.experts.curves import METRICS_FILE as CURVES_FILE
from safety.features.extractor import features_name
from safety.judges.judge import judge_identity
from safety.judges.members import shares_a_network
from safety.prompts.files import PROMPTS_FILE, read_prompt_file
from safety.taxonomy import Taxonomy

KIND, STAGE = "report", "evaluate"
REPORT_FILE, IMAGES_FILE = "report.html", "images.parquet"
SEED = "run"


def run(
    context: StageContext,
    dataset: ArtifactRef,
    experts: Mapping[str, ArtifactRef],
    merges: Mapping[str, ArtifactRef],
    seconds: Mapping[str, float] | None = None,
) -> ArtifactRef:
    """Evaluate the models and publish the report; a finished report, or a finished group of images, is kept.

    Args:
        context: The run.
        dataset: The dataset whose test, held-out and benign test prompts are rendered.
        experts: Adapters by category; other names ("all-single") are evaluated in full, as the merges are.
        merges: Merged adapters by name; "merged" is the one to be released.
        seconds: Durations of the earlier stages, for the report.

    Raises:
        ConfigError: There is no merge called "merged".
        EmptyDatasetError: The dataset has no test prompt of a category.
        ImpossibleResources: The cluster can never run the actors.
    """
    config, taxonomy = context.run.evaluate, context.run.load_taxonomy()
    adapters = chosen_adapters(config, taxonomy, experts, merges)
    provenance = describe(context, taxonomy, {"dataset": dataset, **adapters})
    second, folder = provenance.second_judge, reference_folder(context)
    settings = {
        "evaluate": config.recipe(),
        "model": context.model.model_dump(mode="json"),
        "taxonomy": taxonomy.model_dump(mode="json"),
        "judge": provenance.judge.model_dump(mode="json"),
        **({} if second is None else {"second_judge": second.model_dump(mode="json")}),
        "features": provenance.features,
        **({} if folder is None else {"fid_reference": folder.sha256}),
        **{name: found for name in ("fid_features", "lpips") if (found := getattr(provenance, name)) is not None},
        "artifacts": provenance.artifacts,
    }
    parents = [dataset, *adapters.values()]
    ref = artifact_ref(context, KIND, settings, parents)
    groups = FinishedGroups(context.store, ref)
    if finished(context, ref):
        context.console.print(f"report {ref.id}: already published")
        # They are left over when a run died between publishing and clearing.
        groups.clear()
        _deliver(context, ref)
        return ref
    started = time.monotonic()
    reference = reference_moments(context, folder, provenance.fid_features or provenance.features)
    table = render_all(context, ref, dataset, adapters, taxonomy)
    durations = {**(seconds or {}), "evaluate": time.monotonic() - started, "evaluate (all actors)": table.seconds}
    metrics = compute_metrics(table.records, taxonomy.categories, provenance, config.goals, durations, reference)
    curves = read_curves({name: context.folder(expert, CURVES_FILE) for name, expert in experts.items()})
    publish(context, ref, settings, parents, lambda folder: _fill(folder, metrics, table, curves))
    groups.clear()
    _deliver(context, ref)
    return ref


def chosen_adapters(
    config: EvaluateConfig, taxonomy: Taxonomy, experts: Mapping[str, ArtifactRef], merges: Mapping[str, ArtifactRef]
) -> dict[str, ArtifactRef]:
    """Return the adapters to evaluate by model name, the merged one first; raise ConfigError without one."""
    if MERGED not in merges:
        raise ConfigError(
            f"there is no merge called {MERGED!r} among: {', '.join(merges) or 'none'}",
            field="merge",
            fix="run the merge stage first",
        )
    trained = {n: ref for n, ref in experts.items() if config.experts or n not in taxonomy.categories}
    return {MERGED: merges[MERGED], **merges, **trained}


def describe(context: StageContext, taxonomy: Taxonomy, artifacts: Mapping[str, ArtifactRef]) -> Provenance:
    """Return the provenance of the figures; raise ConfigError for an unknown judge or unknown features."""
    run, config = context.run, context.run.evaluate
    place, other, apart = evaluate_place(run), config.second_judge, config.fid_features
    chose = (run.generate.judge, run.merge.judge)
    return Provenance(
        run=run.run.name,
        config_hash=config_hash(run),
        commit=code_version(),
        model=run.model.path,
        taxonomy=taxonomy.name,
        notice=taxonomy.notice,
        judge=placed_unless_cheap(place, judge_identity, config.judge, taxonomy),
        second_judge=None
        if other is None
        else placed_unless_cheap(place, judge_identity, other, taxonomy, partly=True),
        judge_chose=shares_a_network(config.judge, chose),
        second_chose=None if other is None else shares_a_network(other, chose),
        features=None if config.features is None else placed_unless_cheap(place, features_name, config.features),
        fid_features=None if apart is None else placed_unless_cheap(place, features_name, apart),
        lpips=None if config.lpips is None else placed_unless_cheap(place, lpips_name, config.lpips),
        seeds={SEED: run.run.seed},
        render=config.render.model_dump(),
        bootstrap=config.bootstrap,
        artifacts={name: ref.id for name, ref in artifacts.items()},
        machine=_machine(),
    )


def render_all(
    context: StageContext,
    ref: ArtifactRef,
    dataset: ArtifactRef,
    adapters: Mapping[str, ArtifactRef],
    taxonomy: Taxonomy,
) -> RecordTable:
    """Render and measure the groups that are not in the store yet; return all records and the actors' seconds."""
    config, groups = context.run.evaluate, FinishedGroups(context.store, ref)
    prompts = read_prompt_file(context.folder(dataset, PROMPTS_FILE) / PROMPTS_FILE)
    experts = {name for name in adapters if name in taxonomy.categories}
    plan = plan_evaluation(prompts, taxonomy.categories, list(adapters), experts, config.counts, context.run.run.seed)
    wanted = plan.groups(config.group_size)
    tables = dict(groups.all())
    missing = [group for group in wanted if group.number not in tables]
    if tables:
        context.console.print(f"{len(wanted) - len(missing)} of {len(wanted)} groups are finished already")
    if missing:
        inputs = EvaluationInputs(context.run.model, taxonomy, config, adapters, groups, context.work.resolve())
        total, left = (sum(len(group.images) for group in groups) for groups in (wanted, missing))
        with StageProgress(context.console, "evaluate", total, "images", done=total - left) as progress:
            for row in evaluate_groups(missing, inputs):
                IMAGES.add(row["images"], run=context.run.run.name, stage=STAGE)
                GROUP_SECONDS.observe(row["seconds"], run=context.run.run.name, stage=STAGE)
                progress.advance(int(row["images"]), str(row["model"]))
    tables |= {group.number: groups.read(group.number) for group in missing}
    records = tuple(record for group in wanted for record in tables[group.number].records)
    return RecordTable(records=records, seconds=sum(tables[group.number].seconds for group in wanted))


def _fill(folder: Path, metrics: MetricsReport, table: RecordTable, curves: Curves) -> None:
    (folder / METRICS_FILE).write_text(metrics.model_dump_json(indent=1) + "\n", encoding="utf-8")
    (folder / REPORT_FILE).write_text(render_report(metrics, table.records, curves), encoding="utf-8")
    (folder / IMAGES_FILE).write_bytes(table.to_parquet())


def _deliver(context: StageContext, ref: ArtifactRef) -> None:
    """Copy the metrics and the report to the run's output folder, and print the tables."""
    folder, output = context.folder(ref, METRICS_FILE, REPORT_FILE), context.run.run.output
    output.mkdir(parents=True, exist_ok=True)
    for name in (METRICS_FILE, REPORT_FILE):
        shutil.copyfile(folder / name, output / name)
    metrics = MetricsReport.model_validate_json((folder / METRICS_FILE).read_bytes())
    for model, figures in metrics.ip.items():
        for category, figure in figures.items():
            IP.set(figure.value, run=context.run.run.name, model=model, category=category)
    for table in terminal_tables(metrics):
        context.console.print(rich_table(table))
    places = escape(f"report: {output / REPORT_FILE}, figures: {output / METRICS_FILE}")
    context.console.print(places, soft_wrap=True)
    context.console.print(f"both in the store: {escape(context.store.where(*ref))}", soft_wrap=True)


def rich_table(table: ReportTable) -> Table:
    """Return a report's table for the terminal."""
    shown = Table(title=table.title, caption=escape(table.note) or None, title_justify="left", caption_justify="left")
    for name in table.header:
        shown.add_column(escape(name), overflow="fold")
    for row in table.rows:
        shown.add_row(*(_toned(cell) for cell in row))
    return shown


def _toned(cell: str) -> str:
    escaped = escape(cell)
    tone = {"✓": "green", "✗": "red"}.get(cell[:1])
    return f"[{tone}]{escaped}[/]" if tone else escaped


def _machine() -> str:
    resources = ray.cluster_resources()
    found = [f"{resources[name]:g} {name}" for name in ("CPU", "GPU") if resources.get(name)]
    return f"{', '.join(found)}, {platform.machine()}"
