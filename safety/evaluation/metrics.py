"""The metrics of one evaluation, as written to metrics.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import Field

from safety.base import Config
from safety.evaluation.benign import BenignQuality, benign_fid, benign_quality
from safety.evaluation.bootstrap import BootstrapConfig, Estimate
from safety.evaluation.context import ContextKept, measure_context
from safety.evaluation.goals import Goal, GoalsConfig, check_goals
from safety.evaluation.ip import OVERALL, inappropriate_probability, ip_by_concept, ip_difference
from safety.evaluation.moments import Moments
from safety.evaluation.plan import BASE, MERGED
from safety.evaluation.records import EvaluationSplit, ImageRecord
from safety.judges.judge import JudgeIdentity

METRICS_FILE = "metrics.json"


class Provenance(Config):
    """Everything that a figure depends on, so that it can be reproduced."""

    run: str
    config_hash: str
    """SHA-256 of the whole run's canonical config."""
    commit: str
    model: str
    taxonomy: str
    notice: str | None
    """The taxonomy's own, shown above the figures."""
    judge: JudgeIdentity
    second_judge: JudgeIdentity | None = None
    """Whose figures stand beside the judge's; None without one."""
    judge_chose: bool | None = None
    """Whether the judge, or a member of it, is also the one that filters the data or chooses the merge; None: not known."""
    second_chose: bool | None = None
    """The same of the second judge."""
    features: str | None
    """Of CLIPScore and CMMD, and of FID where it has none of its own; None: they were not measured."""
    fid_features: str | None = None
    """FID's own; None: ``features``."""
    lpips: str | None = None
    """LPIPS's network; None: it was not measured."""
    seeds: dict[str, int]
    render: dict[str, int | float | None]
    bootstrap: BootstrapConfig
    artifacts: dict[str, str]
    """Ids of the dataset and of each model's adapter, by name."""
    machine: str


class FidDetails(Config):
    """The features, the count and the reference that all FID figures share."""

    features: str
    dimensions: int
    n: int
    reference: str
    note: str


class MetricsReport(Config):
    """Every figure of an evaluation, by model name: "base", "merged" (the released one) and the others."""

    ip: dict[str, dict[str, Estimate]]
    ip_second: dict[str, dict[str, Estimate]] = Field(
        {}, description="the same by the second judge, of the categories that it covers; empty without one"
    )
    ip_heldout: dict[str, dict[str, Estimate]]
    ip_difference: dict[str, Estimate]
    """Overall IP of the merged model minus that of each other, on the prompts that both rendered."""
    ip_by_concept: dict[str, dict[str, tuple[int, int]]]
    """(flagged, images) by concept, of the base and the merged model."""
    benign: dict[str, BenignQuality]
    fid: FidDetails | None
    context_kept: Estimate | None
    """The merged model's ``context[...].kept``."""
    context: dict[str, ContextKept]
    goals: list[Goal]
    seconds: dict[str, float]
    provenance: Provenance


def compute_metrics(
    records: Sequence[ImageRecord],
    categories: Sequence[str],
    provenance: Provenance,
    goals: GoalsConfig,
    seconds: Mapping[str, float],
    reference: Moments | None = None,
) -> MetricsReport:
    """Compute every figure from the image records of the base, "merged" and any other models.

    ``reference`` is FID's, where the evaluation names one.

    Raises:
        EmptyDatasetError: A model has no benign image.
        ValueError: The base or the merged model is missing from the records.
    """
    models = list(dict.fromkeys(record.model for record in records))
    if missing := {BASE, MERGED} - set(models):
        raise ValueError(f"no records of {', '.join(sorted(missing))}")
    config, seed = provenance.bootstrap, provenance.seeds["run"]
    ip = {m: inappropriate_probability(records, m, EvaluationSplit.TEST, categories, config, seed) for m in models}
    heldout = {
        m: inappropriate_probability(records, m, EvaluationSplit.HELDOUT, categories, config, seed) for m in models
    }
    second = {
        m: inappropriate_probability(records, m, EvaluationSplit.TEST, categories, config, seed, second=True)
        for m in models
    }
    fid_features = provenance.fid_features or provenance.features
    others = [model for model in models if model != MERGED]
    differences = {m: ip_difference(records, MERGED, m, categories, config, seed) for m in others}
    benign = {model: benign_quality(records, model, fid_features, config, seed, reference) for model in models}
    context = {model: measure_context(records, model, config, seed) for model in models}
    kept = context[MERGED]
    return MetricsReport(
        ip=ip,
        ip_second={model: _comparable(found, ip[model]) for model, found in second.items() if found},
        ip_heldout={model: found for model, found in heldout.items() if found},
        ip_difference={model: found for model, found in differences.items() if found is not None},
        ip_by_concept={model: ip_by_concept(records, model) for model in (BASE, MERGED)},
        benign=benign,
        fid=_fid_details(records, fid_features, reference),
        context_kept=None if kept is None else kept.kept,
        context={model: found for model, found in context.items() if found is not None},
        goals=check_goals(ip, benign, None if kept is None else kept.kept, goals),
        seconds=dict(seconds),
        provenance=provenance,
    )


def _fid_details(records: Sequence[ImageRecord], features: str | None, reference: Moments | None) -> FidDetails | None:
    floor = None if features is None else benign_fid(records, BASE, features, reference)
    return None if floor is None else FidDetails.model_validate(floor, from_attributes=True)


def _comparable(second: dict[str, Estimate], first: Mapping[str, Estimate]) -> dict[str, Estimate]:
    """Return the second judge's IP, without the overall one where it covers fewer categories than the first judge."""
    return second if len(second) == len(first) else {name: found for name, found in second.items() if name != OVERALL}
