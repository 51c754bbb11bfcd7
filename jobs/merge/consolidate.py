"""Consolidation: fine-tunes the merged adapter on all categories and benign rows, then picks its scale.

Each expert's side effect on benign prompts is small but shared, so the merged sum is large, and no expert's own training
can see it. A short training of the merge does. The scale is chosen, as between merges, by the rendered score on the
validation split, smoothed over the scales.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.table import Table

from jobs.merge.config import ConsolidateConfig
from jobs.merge.files import truncation_error
from jobs.merge.rendered_scores import Candidate, Candidates, score_all
from jobs.run.artifacts import ArtifactRef, StageContext, artifact_ref, finished, publish
from jobs.run.placement import placed_unless_cheap
from jobs.run.places import merge_place
from jobs.run.work_area import Records
from jobs.train import stage as train
from jobs.train.config import CONSOLIDATED
from jobs.train.task import KIND as EXPERT
from jobs.train.task import ExpertTask
from jobs.train.task import plan as plan_experts
from safety.base import Config
from safety.families.family import families
from safety.judges.judge import judge_identity
from safety.lora.config import LoraConfig
from safety.lora.files import LORA_FILE, load_lora, save_lora
from safety.lora.weights import LoraWeights
from safety.markdown import head
from safety.merge.plots import plot_scales
from safety.merge.rendered_score import RenderedScore, choose_prompts, smoothed
from safety.merge.search import best
from safety.prompts.files import PROMPTS_FILE, read_prompt_file

KIND = "consolidation"
SCALE = "scale"
REPORT_FILE, SCALES_FILE, CARD_FILE = "report.json", "scales.png", "README.md"


class Consolidation(Config):
    """The origin of a consolidated merge and the choice of its scale: the content of report.json."""

    base_model: str
    dataset: str
    start: str
    """The merge artifact's id."""
    trained: str
    """The trained adapter's artifact id; that artifact has the training's card and curves."""
    truncation: float | None = None
    """The relative error with which the start was cut to its rank; None: its report says nothing of it."""
    scales: tuple[float, ...]
    chosen: int
    """The chosen scale's index in ``scales``."""
    confirmed: dict[int, RenderedScore]
    """Rendered scores by the scale's index."""

    @property
    def scale(self) -> float:
        """Return the chosen scale."""
        return self.scales[self.chosen]

    @property
    def scores(self) -> dict[float, RenderedScore]:
        """Return the rendered score of each scale."""
        return {scale: self.confirmed[index] for index, scale in enumerate(self.scales)}


@dataclass(frozen=True)
class ScaleCandidates(Candidates):
    """The trained adapter at several scales, as candidates for a rendered score."""

    weights: LoraWeights

    def merged(self, parameters: Candidate) -> LoraWeights:
        """Return the adapter at a scale."""
        return self.weights.scaled(parameters[SCALE])


def run(context: StageContext, dataset: ArtifactRef, merged: ArtifactRef, config: ConsolidateConfig) -> ArtifactRef:
    """Fine-tune a merge and publish it at its best scale; a published consolidation is kept.

    Args:
        context: The run; placement is that of ``train`` and ``merge``.
        dataset: Its training split is trained on, and its validation split decides the scale; test splits are not read.
        merged: The artifact of the adapter that training starts from.
        config: The training's settings and the scales.

    Raises:
        EmptyDatasetError: There is no training pair, no validation prompt, or no benign row that is needed.
        ImpossibleResources: The cluster can never run a worker.
        TrainingHealthError: The training diverged.
        ClusterError: The training did not finish in time.
    """
    task = plan(context, dataset, merged, config)
    settings = _settings(context, config)
    ref = artifact_ref(context, KIND, settings, [dataset, task.ref])
    if finished(context, ref):
        context.console.print(f"consolidation {ref.id}: already published")
        return ref
    train.train_missing(context, [task])
    weights = load_lora(context.folder(task.ref, LORA_FILE))
    confirmed, chosen = _choose(context, task, config, ref, weights)
    found = Consolidation(
        base_model=context.run.base_name,
        dataset=dataset.id,
        start=merged.id,
        trained=task.ref.id,
        truncation=truncation_error(context.folder(merged, REPORT_FILE)),
        scales=config.scales,
        chosen=chosen,
        confirmed=confirmed,
    )
    fill = partial(fill_consolidation, found=found, weights=weights, component=families[context.model.family].component)
    publish(context, ref, settings, [dataset, task.ref], fill)
    context.console.print(scale_table(found))
    return ref


def plan(context: StageContext, dataset: ArtifactRef, merged: ArtifactRef, config: ConsolidateConfig) -> ExpertTask:
    """Return the training as an expert's task that learns all trained categories, starting from the merge's adapter."""
    tasks = plan_experts(context, dataset)
    categories = tuple(dict.fromkeys(name for task in tasks for name in task.categories))
    weights = load_lora(context.folder(merged, LORA_FILE))
    lora = LoraConfig(rank=weights.rank, alpha=weights.rank, targets=tuple(weights))
    training = config.train(context.run.train, lora)
    settings: dict[str, Any] = {
        "train": training.recipe(CONSOLIDATED),
        "model": context.model.model_dump(mode="json"),
        "categories": list(categories),
    }
    return replace(
        tasks[0],
        name=CONSOLIDATED,
        categories=categories,
        ref=artifact_ref(context, EXPERT, settings, [dataset, merged]),
        config=training,
        settings=settings,
        start=merged,
    )


def _settings(context: StageContext, config: ConsolidateConfig) -> dict[str, Any]:
    """Return the settings that the choice of the scale depends on, beside the trained adapter."""
    run, merge = context.run, context.run.merge
    judge = placed_unless_cheap(merge_place(run), judge_identity, merge.judge, run.load_taxonomy())
    return {
        "scales": list(config.scales),
        "choice": "parabola",
        **{name: getattr(merge, name).model_dump(mode="json") for name in ("confirm", "render")},
        "judge": judge.model_dump(mode="json"),
    }


def _choose(
    context: StageContext, task: ExpertTask, config: ConsolidateConfig, ref: ArtifactRef, weights: LoraWeights
) -> tuple[dict[int, RenderedScore], int]:
    """Return the rendered score of each scale by its index in the config, and the best scale's index."""
    run, taxonomy = context.run, context.run.load_taxonomy()
    merge_place(run).require()
    prompts = read_prompt_file(context.folder(task.dataset, PROMPTS_FILE) / PROMPTS_FILE)
    candidates = ScaleCandidates(
        model=run.model,
        taxonomy=taxonomy,
        config=run.merge,
        seed=run.run.seed,
        prompts=choose_prompts(prompts, task.categories, run.merge.confirm),
        weights=weights,
    )
    requests: Mapping[int, Candidate] = {index: {SCALE: scale} for index, scale in enumerate(config.scales)}
    records = Records(context.store, ref)
    confirmed = score_all(requests, candidates, records, context.console, "scale")
    fitted = smoothed({config.scales[index]: score.objective for index, score in confirmed.items()})
    return confirmed, best({index: fitted[scale] for index, scale in enumerate(config.scales)})


def scale_table(found: Consolidation) -> Table:
    """Return the table of rendered scores by scale."""
    columns = ("scale", "objective", "IP", "worst IP", "benign failed", "context lost")
    table = Table(*columns, title="Consolidated merge, by scale")
    for scale, score in found.scores.items():
        mark = " (chosen)" if scale == found.scale else ""
        figures = (score.objective, score.ip, score.worst_ip, score.benign_failed, score.context_lost)
        table.add_row(f"{scale:g}{mark}", *(f"{figure:.3f}" for figure in figures))
    return table


def fill_consolidation(folder: Path, found: Consolidation, weights: LoraWeights, component: str) -> None:
    """Write the artifact's files into an empty folder; ``weights`` are at scale 1 and adapt the pipeline's ``component``."""
    provenance = {"start": found.start, "trained": found.trained, "scale": found.scale}
    save_lora(weights.scaled(found.scale), folder, metadata={"consolidation": provenance}, component=component)
    (folder / REPORT_FILE).write_text(found.model_dump_json(indent=1) + "\n", encoding="utf-8")
    plot_scales(found.scores, found.scale, folder / SCALES_FILE)
    (folder / CARD_FILE).write_text(consolidation_card(found), encoding="utf-8")


def consolidation_card(found: Consolidation) -> str:
    """Return README.md of the artifact."""
    rows = [
        f"| {scale:g}{' (chosen)' if scale == found.scale else ''} | {score.ip:.3f} | {score.worst_ip:.3f} | "
        f"{score.benign_failed:.3f} | {score.context_lost:.3f} | {score.objective:.3f} |"
        for scale, score in found.scores.items()
    ]
    lines = [
        "---",
        "library_name: diffusers",
        head({"base_model": found.base_model}),
        "tags: [lora, safety, safetydpo, merge]",
        "---",
        "",
        "# Consolidated merge",
        "",
        f"The merge `{found.start}`, fine-tuned as one adapter on the pairs of all categories and on benign rows of the",
        f"dataset `{found.dataset}` (training `{found.trained}`), at the scale with the best rendered score.",
        "",
        "| scale | IP | IP of the worst category | benign failed | context lost | objective |",
        "|---|---|---|---|---|---|",
        *rows,
        "",
        f"`{SCALES_FILE}` shows the same; `{REPORT_FILE}` has the figures per category.",
        "",
    ]
    return "\n".join(lines)
