"""The report's tables as rows of text, which the terminal and the HTML page both show."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from safety.evaluation.bootstrap import Estimate
from safety.evaluation.ip import OVERALL
from safety.evaluation.metrics import MetricsReport
from safety.evaluation.plan import ALL_SINGLE, BASE, MERGED
from safety.judges.judge import JudgeIdentity
from safety.merge.method import merge_label

NONE = "-"
LABELS = {BASE: "Base", MERGED: "Merged", ALL_SINGLE: "All-single"}
ALL_SINGLE_NOTE = (
    "All-single is trained on all categories with the budget of one expert: this is not a comparison at equal compute."
)


class ReportTable(NamedTuple):
    """A table of text cells; the first column names the row."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


def label(metrics: MetricsReport, model: str) -> str:
    """Return a model's display name: of an expert by its category, of a merge by its method."""
    if model in experts(metrics):
        return f"Expert: {model}"
    return LABELS.get(model) or merge_label(model)


def full_models(metrics: MetricsReport) -> list[str]:
    """Return the models rendered on the full prompt sets, base first, merged second."""
    single = set(experts(metrics))
    return [BASE, MERGED, *(model for model in metrics.benign if model not in {BASE, MERGED, *single})]


def experts(metrics: MetricsReport) -> list[str]:
    """Return the models rendered on the experts' smaller counts: those named by a category."""
    return [model for model in metrics.benign if model in metrics.ip[BASE] and model != OVERALL]


def share(figure: Estimate | None) -> str:
    """Return a share in percent with its interval."""
    if figure is None:
        return NONE
    return f"{100 * figure.value:.1f}% [{100 * figure.low:.0f}, {100 * figure.high:.0f}]"


def goals_table(metrics: MetricsReport) -> ReportTable:
    """Return the goals, the measured figures and whether they meet the goals."""
    rows = tuple((g.what, g.limit, g.shown, "✓ met" if g.met else "✗ not met") for g in metrics.goals)
    return ReportTable("Figures to reach", ("Figure", "Limit", "Measured", ""), rows)


SECOND = "(evaluate.second_judge adds another's)"
ONE_JUDGE = {
    True: f"By the judge that selected: it also filters the data or chooses the merge, so its figures flatter the result {SECOND}.",
    False: "By one judge, which neither filters the data nor chooses the merge.",
    None: f"By one judge: where it has also filtered the data and chosen the merge, its figures flatter the result {SECOND}.",
}
"""By whether the judge has chosen, which reports of earlier versions do not say."""
SECOND_JUDGE = {
    True: "The second judge filters the data or chooses the merge too, so its figures flatter the result as well.",
    False: "The second judge has chosen nothing: neither the data nor the merge.",
    None: "",
}


def ip_table(metrics: MetricsReport, *, heldout: bool) -> ReportTable:
    """Return IP by category (rows) and model (columns)."""
    figures = metrics.ip_heldout if heldout else metrics.ip
    models = [model for model in full_models(metrics) if model in figures]
    categories = list(figures[BASE]) if models else []
    ordered = sorted(categories, key=lambda category: category == OVERALL)
    rows = tuple((name, *(share(figures[m].get(name)) for m in models)) for name in ordered)
    counts = sorted({figures[BASE][c].n for c in categories if c != OVERALL})
    title = "IP on concepts held out of alignment" if heldout else "IP on test prompts"
    note = _images_note(counts)
    if metrics.provenance.second_judge is None:
        note = f"{note} {ONE_JUDGE[metrics.provenance.judge_chose]}".strip()
    return ReportTable(title, ("Category", *(label(metrics, m) for m in models)), rows, note)


def second_ip_table(metrics: MetricsReport) -> ReportTable:
    """Return IP by both judges in each category that the second covers, and overall where it covers all.

    It has no rows where there is no second judge.
    """
    rows = []
    for model in full_models(metrics) if metrics.ip_second else []:
        first, second = metrics.ip[model], metrics.ip_second.get(model, {})
        named = [name for name in (OVERALL, *(name for name in second if name != OVERALL)) if name in second]
        rows += [(label(metrics, model), name, share(first.get(name)), share(second[name])) for name in named]
    found, other = metrics.provenance.judge, metrics.provenance.second_judge
    header = ("Model", "Category", f"IP by {found.name}", f"IP by {NONE if other is None else other.name}")
    return ReportTable("IP by two judges", header, tuple(rows), _second_note(metrics) if rows else "")


def _second_note(metrics: MetricsReport) -> str:
    """Return whether the second judge has had a part in what it measures, and what it does not cover."""
    covered = {name for found in metrics.ip_second.values() for name in found}
    others = [name for name in metrics.ip[BASE] if name not in covered and name != OVERALL]
    silent = f"It does not judge {', '.join(others)}." if others else ""
    return f"{SECOND_JUDGE[metrics.provenance.second_chose]} {silent}".strip()


def expert_table(metrics: MetricsReport) -> ReportTable:
    """Return each expert's figures on its own category, the others and benign prompts."""
    rows = []
    for model in experts(metrics):
        own = metrics.ip[model].get(model)
        others = [e for name, e in metrics.ip[model].items() if name not in (model, OVERALL)]
        rest = sum(e.value for e in others) / len(others) if others else None
        benign = metrics.benign[model]
        rows.append(
            (
                model,
                share(metrics.ip[BASE].get(model)),
                share(own),
                NONE if rest is None else f"{100 * rest:.1f}%",
                share(metrics.ip[model].get(OVERALL)),
                share(benign.intervals.get("objects_present")),
            )
        )
    header = ("Expert", "Own category, base", "Own category", "Other categories", "Overall", "Benign objects present")
    note = "Experts are rendered on fewer prompts: their own category, a few of each other, a few benign ones."
    return ReportTable("Each expert by itself", header, tuple(rows), note)


def benign_table(metrics: MetricsReport) -> ReportTable:
    """Return the quality on benign prompts by model."""
    rows = []
    for model in full_models(metrics):
        found = metrics.benign[model]
        clip = found.intervals.get("clip_score")
        rows.append(
            (
                label(metrics, model),
                share(found.intervals.get("objects_present")),
                _mean(clip, digits=2),
                NONE if found.fid is None else f"{found.fid:.3f}",
                NONE if found.fid_to_base is None else f"{found.fid_to_base:.3f}",
                NONE if found.cmmd_to_base is None else f"{found.cmmd_to_base:.3f}",
                *([_mean(found.intervals.get("lpips_to_base"))] if metrics.provenance.lpips else []),
                share(found.intervals["flagged"]),
                str(found.n),
            )
        )
    note = ""
    measured = metrics.provenance
    if measured.features is None:
        distances = "no CLIPScore and no CMMD" if measured.fid_features else "no CLIPScore, no FID and no CMMD"
        note = f"No features were measured (evaluate.features), so there is {distances}."
    if metrics.fid is not None:
        note = (
            f"FID: {metrics.fid.features}, {metrics.fid.n} images against {metrics.fid.reference}. To base: against "
            f"as many images of the base from other seeds; the base's own figure is the effect of seeds alone."
        )
        note = f"{note} {metrics.fid.note}".strip()
    distances_shown = ("FID", "FID to base", "CMMD to base", *(("LPIPS to base",) if measured.lpips else ()))
    header = ("Model", "Every object present", "CLIPScore", *distances_shown, "Flagged", "Images")
    return ReportTable("Benign prompts", header, tuple(rows), note)


def context_table(metrics: MetricsReport) -> ReportTable:
    """Return the context kept in images from unsafe test prompts, by model."""
    rows = tuple(
        (
            label(metrics, model),
            share(found.kept),
            share(found.object_kept),
            share(found.background_kept),
            share(found.kept_of_base),
            str(found.kept.n),
        )
        for model in full_models(metrics)
        if (found := metrics.context.get(model)) is not None
    )
    header = ("Model", "Object and background", "Benign object", "Background", "Of what the base kept", "Images")
    return ReportTable("Context kept in images from unsafe prompts", header, rows)


def difference_table(metrics: MetricsReport) -> ReportTable:
    """Return overall IP of the merged model minus that of each other, over pairs of images of one prompt and seed."""
    rows = []
    for model in (*full_models(metrics), *experts(metrics)):
        found = metrics.ip_difference.get(model)
        if found is None:
            continue
        verdict = "lower" if found.high < 0 else "higher" if found.low > 0 else "no clear difference"
        points = f"{100 * found.value:+.1f} [{100 * found.low:+.0f}, {100 * found.high:+.0f}]"
        rows.append((label(metrics, model), points, verdict, str(found.n)))
    header = ("Against", "Points of IP", "The merged model's IP is", "Prompt pairs")
    note = "Same prompts, same seeds, paired resampling."
    if ALL_SINGLE in metrics.ip_difference:
        note = f"{note} {ALL_SINGLE_NOTE}"
    return ReportTable("Merged model against the others", header, tuple(rows), note)


def concept_table(metrics: MetricsReport) -> ReportTable:
    """Return flagged images of the merged model by concept, worst first."""
    base, merged = metrics.ip_by_concept[BASE], metrics.ip_by_concept[MERGED]
    order = sorted(merged, key=lambda concept: (-merged[concept][0] / merged[concept][1], concept))
    rows = tuple((concept, _count(base.get(concept)), _count(merged[concept])) for concept in order)
    return ReportTable("Flagged images by concept", ("Concept", "Base", "Merged"), rows)


def provenance_table(metrics: MetricsReport) -> ReportTable:
    """Return the provenance of the figures."""
    found = metrics.provenance
    interval, other = found.bootstrap, found.second_judge
    rows = [
        ("Run", found.run),
        ("Config (SHA-256)", found.config_hash),
        ("Code", found.commit),
        ("Base model", found.model),
        ("Taxonomy", found.taxonomy),
        ("Judge", _judge(found.judge)),
        *(() if other is None else (("Second judge", _judge(other)),)),
        ("Features", found.features or NONE),
        *(() if found.fid_features is None else (("FID's features", found.fid_features),)),
        *(() if found.lpips is None else (("LPIPS", found.lpips),)),
        ("Sampling", ", ".join(f"{k} {v}" for k, v in found.render.items() if v is not None)),
        ("Seeds", ", ".join(f"{k} {v}" for k, v in found.seeds.items())),
        ("Intervals", f"{interval.confidence:.0%}, bootstrap ({interval.method}), {interval.resamples} resamples"),
        *((f"Artifact: {name}", artifact) for name, artifact in found.artifacts.items()),
        ("Machine", found.machine),
    ]
    return ReportTable("Provenance", ("What", "Value"), tuple(rows))


def seconds_table(metrics: MetricsReport) -> ReportTable:
    """Return the time of each stage."""
    rows = tuple((stage, f"{seconds:.1f}") for stage, seconds in metrics.seconds.items())
    return ReportTable("Time", ("Stage", "Seconds"), rows)


def terminal_tables(metrics: MetricsReport) -> list[ReportTable]:
    """Return the tables that the terminal shows."""
    found = [ip_table(metrics, heldout=False), ip_table(metrics, heldout=True), expert_table(metrics)]
    found.insert(1, second_ip_table(metrics))
    found += [benign_table(metrics), context_table(metrics), difference_table(metrics), goals_table(metrics)]
    return [table for table in found if table.rows]


def _images_note(counts: Sequence[int]) -> str:
    if not counts:
        return ""
    spread = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"{spread} images per category and model; share flagged [interval]."


def _judge(found: JudgeIdentity) -> str:
    return f"{found.name}, version {found.version}, threshold {found.threshold:g}"


def _mean(found: Estimate | None, digits: int = 3) -> str:
    return NONE if found is None else f"{found.value:.{digits}f} [{found.low:.{digits}f}, {found.high:.{digits}f}]"


def _count(count: tuple[int, int] | None) -> str:
    return NONE if count is None else f"{count[0]} of {count[1]}"
