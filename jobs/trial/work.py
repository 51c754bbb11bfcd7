"""The work of a run by stage: images, steps, passes and verdicts, counted from its settings and its prompts."""

from __future__ import annotations

import math

from jobs.run.config import RunConfig
from safety.base import Config
from safety.dataset.plan import RENDERED_SPLITS
from safety.evaluation.plan import ALL_SINGLE, MERGED, plan_evaluation
from safety.experts.memory import latents_of
from safety.merge.rendered_score import choose_prompts
from safety.prompts.rows import PromptRow, PromptSet
from safety.rendering import RenderConfig
from safety.taxonomy import Taxonomy


class StageWork(Config):
    """What one stage does, whoever does it."""

    images: int = 0
    """Rendered, each decoded."""
    steps: int = 0
    """Sampling steps of one of them."""
    guided: bool = True
    """Whether each sampling step predicts two latents of an image."""
    pixels: float = 1.0
    """Pixels of an image, in those of generation."""
    judged: int = 0
    embedded: int = 0
    first_steps: float = 0.0
    """Training steps on batches that are new, in those of an expert."""
    again_steps: float = 0.0
    """Training steps on batches that repeat."""
    predicted: int = 0
    """Latents that the denoiser predicts beside those."""

    @property
    def is_empty(self) -> bool:
        """Return whether there is nothing to do."""
        return not (self.images or self.first_steps or self.predicted)


def rendered_pictures(prompts: PromptSet) -> int:
    """Return the pictures that generation renders of a run's prompts."""
    rows: list[PromptRow] = [*prompts.pairs, *prompts.benign]
    return sum(len(row.prompts) for row in rows if row.split in RENDERED_SPLITS)


def trained_experts(run: RunConfig, taxonomy: Taxonomy) -> int:
    """Return the number of experts, the one on all categories among them."""
    return len(run.train.categories or taxonomy.categories) + int(run.train.all_single)


def stage_work(run: RunConfig, taxonomy: Taxonomy, prompts: PromptSet) -> dict[str, StageWork]:
    """Return the work of each stage by name.

    Raises:
        EmptyDatasetError: A stage would be left without prompts.
    """
    return {
        "generate": _generate(run, prompts),
        "train": _train(run, taxonomy),
        "merge": _merge(run, taxonomy, prompts),
        "consolidate": _consolidate(run, taxonomy, prompts),
        "evaluate": _evaluate(run, taxonomy, prompts),
        "release": StageWork(
            images=2 * len(run.release.smoke_prompts or taxonomy.categories), **_drawn(run, run.evaluate.render)
        ),
        "serve": StageWork(images=2 * len(taxonomy.categories), steps=run.serve.default_steps),
    }


def _drawn(run: RunConfig, render: RenderConfig) -> dict[str, float | int | bool]:
    """Return the settings of a stage's rendering; a size that is not set counts as generation's."""
    own = run.generate.render
    sides = ((render.height, own.height), (render.width, own.width))
    shares = [mine / theirs for mine, theirs in sides if mine is not None and theirs is not None]
    return {"steps": render.steps, "guided": render.guidance > 1, "pixels": math.prod(shares)}


def _generate(run: RunConfig, prompts: PromptSet) -> StageWork:
    images = rendered_pictures(prompts)
    return StageWork(images=images, judged=images, **_drawn(run, run.generate.render))


def _train(run: RunConfig, taxonomy: Taxonomy) -> StageWork:
    expert, count = run.train.expert, trained_experts(run, taxonomy)
    first = min(expert.steps, expert.distinct_batches or expert.steps)
    return StageWork(first_steps=float(count * first), again_steps=float(count * (expert.steps - first)))


def _scored(run: RunConfig, taxonomy: Taxonomy, prompts: PromptSet) -> int:
    """Return the images by which one candidate of the merge is scored."""
    chosen = [name for name in taxonomy.categories if name in (run.train.categories or taxonomy.categories)]
    found = choose_prompts(prompts, chosen, run.merge.confirm)
    return len(found.pairs) + len(found.benign)


def _merge(run: RunConfig, taxonomy: Taxonomy, prompts: PromptSet) -> StageWork:
    merge, categories = run.merge, len(run.train.categories or taxonomy.categories)
    surrogate = merge.surrogate
    each = categories * surrogate.pairs_per_category * len(surrogate.timesteps)
    each += surrogate.benign * len(surrogate.benign_timesteps)
    calibrated = categories * merge.calibration.pairs_per_category * len(merge.calibration.timesteps)
    images = (merge.search.confirm + 1) * _scored(run, taxonomy, prompts)
    return StageWork(
        images=images,
        judged=images,
        # The base predicts pairs under both prompts, once; every trial after that under the unsafe ones.
        predicted=calibrated + (merge.search.trials + 2) * each,
        **_drawn(run, merge.render),
    )


def _consolidate(run: RunConfig, taxonomy: Taxonomy, prompts: PromptSet) -> StageWork:
    config = run.consolidate
    if config is None:
        return StageWork()
    expert = run.train.expert
    own = expert.model_copy(update={"rows": config.rows, "benign_rows": config.benign_rows})
    share = latents_of(own) / latents_of(expert)
    first = min(config.steps, config.distinct_batches or config.steps)
    images = len(config.scales) * _scored(run, taxonomy, prompts)
    return StageWork(
        images=images,
        judged=images,
        first_steps=first * share,
        again_steps=(config.steps - first) * share,
        **_drawn(run, run.merge.render),
    )


def _evaluate(run: RunConfig, taxonomy: Taxonomy, prompts: PromptSet) -> StageWork:
    config = run.evaluate
    experts = set(run.train.categories or taxonomy.categories) if config.experts else set()
    joint = {ALL_SINGLE} if run.train.all_single else set()
    models = [MERGED, *run.merge.merges(), *sorted(joint), *sorted(experts)]
    plan = plan_evaluation(prompts, taxonomy.categories, models, experts, config.counts, run.run.seed)
    images = len(plan.images)
    embedded = images if config.features is not None else 0
    return StageWork(images=images, judged=images, embedded=embedded, **_drawn(run, config.render))
