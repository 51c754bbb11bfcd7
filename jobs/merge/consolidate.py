"""Trains the merge on, as one adapter, on the pairs of all categories and on benign rows; keeps it at its best scale.

What experts do to benign prompts is little for each and alike, so it adds up when they are merged, and no expert's own
training can see it. A short training of the merge sees it. How strongly the result is applied is decided by rendered
images of the validation split, as between merges, with the scales' figures smoothed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from rich.table import Table

from cluster.resources import require
from jobs.merge.config import MergeConfig
from jobs.merge.consolidate_config import ConsolidateConfig
from jobs.merge.consolidate_files import Consolidation, fill_consolidation
from jobs.merge.rendered_scores import Candidate, score_all
from jobs.merge.stage import judge_settings
from jobs.run.artifacts import ArtifactRef, StageContext, artifact_ref, finished, publish
from jobs.run.work_area import Records
from jobs.train import stage as train
from jobs.train.config import CONSOLIDATED
from jobs.train.task import KIND as EXPERT
from jobs.train.task import ExpertTask
from jobs.train.task import plan as plan_experts
from safety.families import ModelConfig
from safety.lora.config import LoraConfig
from safety.lora.files import load_lora
from safety.lora.weights import LoraWeights
from safety.merge.rendered_score import RenderedScore, ValidationPrompts, choose_prompts, smoothed
from safety.merge.search import best
from safety.prompts.files import PROMPTS_FILE, read_prompt_file
from safety.taxonomy import Taxonomy

KIND = "consolidation"
SCALE = "scale"


@dataclass(frozen=True)
class ScaleCandidates:
    """What is rendered to choose the scale (``jobs.merge.rendered_scores.Candidates``)."""

    model: ModelConfig
    taxonomy: Taxonomy
    config: MergeConfig
    seed: int
    prompts: ValidationPrompts
    weights: LoraWeights

    def merged(self, parameters: Candidate) -> LoraWeights:
        """Return the adapter at a scale."""
        return self.weights.scaled(parameters[SCALE])


def run(context: StageContext, dataset: ArtifactRef, merged: ArtifactRef, config: ConsolidateConfig) -> ArtifactRef:
    """Train a merge on and publish it at its best scale; what is published already is not made again.

    Args:
        context: The run; placement is that of ``train`` and ``merge``.
        dataset: Its training split is trained on, and its validation split decides the scale; test splits are not read.
        merged: The artifact whose adapter is the start.
        config: How it is trained.

    Raises:
        EmptyDatasetError: There is no training pair, no validation prompt, or no benign row that is needed.
        ImpossibleResources: The cluster can never run a worker.
        TrainingHealthError: The training blew up.
        ClusterError: It did not finish in time.
    """
    task = plan(context, dataset, merged, config)
    settings = _settings(context, config)
    ref = artifact_ref(context, KIND, settings, [dataset, task.ref])
    if finished(context, ref):
        context.console.print(f"consolidation {ref.id}: already published and verified")
        return ref
    train.train_missing(context, [task])
    weights = load_lora(context.folder(task.ref))
    confirmed, chosen = _choose(context, task, config, ref, weights)
    found = Consolidation(
        base_model=context.run.model.path,
        dataset=dataset.id,
        start=merged.id,
        trained=task.ref.id,
        scales=config.scales,
        chosen=chosen,
        confirmed=confirmed,
    )
    publish(context, ref, settings, [dataset, task.ref], lambda to: fill_consolidation(to, found, weights))
    context.console.print(scale_table(found))
    return ref


def plan(context: StageContext, dataset: ArtifactRef, merged: ArtifactRef, config: ConsolidateConfig) -> ExpertTask:
    """Return the training as an expert's task: all categories that are trained, from the merge's adapter."""
    every = plan_experts(context, dataset)
    categories = tuple(dict.fromkeys(name for task in every for name in task.categories))
    weights = load_lora(context.folder(merged))
    lora = LoraConfig(rank=weights.rank, alpha=weights.rank, targets=tuple(weights))
    training = config.train(context.run.train, lora)
    settings: dict[str, Any] = {
        "train": training.recipe(CONSOLIDATED),
        "model": context.run.model.model_dump(mode="json"),
        "categories": list(categories),
    }
    return replace(
        every[0],
        name=CONSOLIDATED,
        categories=categories,
        ref=artifact_ref(context, EXPERT, settings, [dataset, merged]),
        config=training,
        settings=settings,
        start=merged,
    )


def _settings(context: StageContext, config: ConsolidateConfig) -> dict[str, Any]:
    """Return what the choice of the scale depends on, beside the trained adapter."""
    merge = context.run.merge
    return {
        "scales": list(config.scales),
        "choice": "parabola",
        **{name: getattr(merge, name).model_dump(mode="json") for name in ("confirm", "render")},
        "judge": judge_settings(merge, context.run.load_taxonomy()),
    }


def _choose(
    context: StageContext, task: ExpertTask, config: ConsolidateConfig, ref: ArtifactRef, weights: LoraWeights
) -> tuple[dict[int, RenderedScore], int]:
    """Return what is seen at each scale, by its place in the config, and the best one's place."""
    run, taxonomy = context.run, context.run.load_taxonomy()
    require(run.merge.resources(), "merge.cpus_per_worker, merge.gpus_per_worker")
    prompts = read_prompt_file(context.folder(task.dataset) / PROMPTS_FILE)
    candidates = ScaleCandidates(
        model=run.model,
        taxonomy=taxonomy,
        config=run.merge,
        seed=run.run.seed,
        prompts=choose_prompts(prompts, task.categories, run.merge.confirm),
        weights=weights,
    )
    asked: Mapping[int, Candidate] = {place: {SCALE: scale} for place, scale in enumerate(config.scales)}
    records = Records(context.store, ref)
    confirmed = score_all(asked, candidates, records, context.console, "scale")
    fitted = smoothed({config.scales[place]: seen.objective for place, seen in confirmed.items()})
    return confirmed, best({place: fitted[scale] for place, scale in enumerate(config.scales)})


def scale_table(found: Consolidation) -> Table:
    """Return what was seen at each scale."""
    columns = ("scale", "objective", "IP", "worst IP", "benign failed", "context lost")
    table = Table(*columns, title="Consolidated merge, by scale")
    for place, scale in enumerate(found.scales):
        seen = found.confirmed[place]
        mark = " (chosen)" if place == found.chosen else ""
        figures = (seen.objective, seen.ip, seen.worst_ip, seen.benign_failed, seen.context_lost)
        table.add_row(f"{scale:g}{mark}", *(f"{figure:.3f}" for figure in figures))
    return table
