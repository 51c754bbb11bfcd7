"""The stage that merges the experts into one LoRA: Co-Merge with searched coefficients, its start, and the baselines."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from typing import Any

from rich.markup import escape
from rich.table import Table

from jobs.merge.calibration import calibrated
from jobs.merge.files import Recipe, Searched, fill_merge
from jobs.merge.search import SearchInputs, render_best, search
from jobs.merge.source import MergeSource, merge_source
from jobs.run.artifacts import SEARCH_FOLDER, ArtifactRef, StageContext, artifact_ref, finished, publish
from jobs.run.placement import placed_unless_cheap
from jobs.run.places import merge_place
from jobs.run.work_area import Records
from safety.families.family import families
from safety.judges.judge import judge_identity
from safety.lora.weights import LoraWeights
from safety.merge.calibration import Calibration
from safety.merge.method import CALIBRATION, SEARCHED, MethodConfig, merge_methods
from safety.merge.rendered_score import choose_prompts
from safety.merge.search import SearchSpace
from safety.merge.weight_form import describe_left_out
from safety.prompts.files import PROMPTS_FILE, read_prompt_file

KIND = "merge"


def run(context: StageContext, dataset: ArtifactRef, experts: Mapping[str, ArtifactRef]) -> dict[str, ArtifactRef]:
    """Merge the experts of the taxonomy's categories in every configured way; published merges are kept.

    Args:
        context: The run.
        dataset: Its training split calibrates the merge and its validation split scores it; the test splits are
            never read.
        experts: Expert artifacts by name; names that are no category ("all-single") are left out.

    Returns:
        The merges by name: "co-merge" (searched), "co-merge-default" (its start), and the run's baselines.

    Raises:
        ConfigError: There is no expert of a category, or a setting names an unknown expert.
        ArtifactFormatError: The experts do not fit each other or the base model.
        EmptyDatasetError: A category has no row in a split that is needed.
        ImpossibleResources: The cluster can never run a worker.
    """
    source = merge_source(context, dataset, experts)
    configs = context.run.merge.merges()
    refs = {
        name: artifact_ref(context, KIND, _settings(source, name, config), source.parents)
        for name, config in configs.items()
    }
    missing = {}
    for name, ref in refs.items():
        if finished(context, ref):
            context.console.print(f"merge {name} {ref.id}: already published")
        else:
            missing[name] = configs[name]
    if missing:
        merge_missing(source, missing, refs)
    return refs


def _settings(source: MergeSource, name: str, config: MethodConfig) -> dict[str, Any]:
    """Return all that a merge depends on beside its parents; where the work runs is not part of it."""
    settings = {
        "model": source.context.model.model_dump(mode="json"),
        "name": name,
        **source.config.recipe(config),
    }
    if name == SEARCHED:
        run = source.context.run
        judge = placed_unless_cheap(merge_place(run), judge_identity, source.config.judge, source.taxonomy)
        settings |= {"search": source.config.search_recipe(), "judge": judge.model_dump(mode="json")}
    return settings


def merge_missing(source: MergeSource, missing: Mapping[str, MethodConfig], refs: Mapping[str, ArtifactRef]) -> None:
    """Compute and publish the missing merges under their refs, the searched one last."""
    context = source.context
    merge_place(context.run).require()
    weights = source.weights()
    left_out = describe_left_out(weights, source.config.search.max_weight_bytes)
    if SEARCHED in missing and left_out and source.config.co_merge.granularity != "weight":
        context.console.print(escape(left_out))
    needed = any(_is_calibrated(method) for method in missing.values())
    calibration, statistics = calibrated(source, weights) if needed else (None, None)
    for name, start in sorted(missing.items(), key=lambda item: item[0] == SEARCHED):
        searched: Searched | None = None
        parameters = start
        if name == SEARCHED:
            assert statistics is not None
            searched, parameters = _search(source, refs[name], weights, statistics)
        result = merge_methods[parameters.name](weights, statistics, parameters)
        recipe = Recipe(
            name=name,
            method=parameters.name,
            base_model=context.run.base_name,
            experts={expert: found.id for expert, found in source.experts.items()},
            dataset=source.dataset.id,
            calibration=calibration.id if calibration is not None and _is_calibrated(parameters) else None,
            parameters=parameters.model_dump(mode="json", exclude={"name"}),
        )
        component = families[context.model.family].component
        fill = partial(fill_merge, recipe=recipe, result=result, searched=searched, component=component)
        publish(context, refs[name], _settings(source, name, start), source.parents, fill)
        context.console.print(f"merge {name} {refs[name].id}: published")


def _is_calibrated(method: MethodConfig) -> bool:
    """Return whether the method reads calibration statistics."""
    return CALIBRATION in merge_methods[method.name].needs


def _search(
    source: MergeSource, ref: ArtifactRef, weights: dict[str, LoraWeights], statistics: Calibration
) -> tuple[Searched, MethodConfig]:
    """Search Co-Merge's coefficients; return the search's record and the chosen configuration."""
    context, config = source.context, source.config
    prompts = read_prompt_file(context.folder(source.dataset, PROMPTS_FILE) / PROMPTS_FILE)
    inputs = SearchInputs(
        run=context.run.run.name,
        model=context.run.model,
        taxonomy=source.taxonomy,
        config=config,
        seed=context.run.run.seed,
        experts=weights,
        statistics=statistics,
        probes=source.probe_source,
        prompts=choose_prompts(prompts, list(source.experts), config.confirm),
    )
    records = Records(context.store, ref)
    logs = context.run.run.output / SEARCH_FOLDER / ref.id
    started = time.monotonic()
    trials = search(inputs, records, logs, context.console)
    scored = time.monotonic()
    confirmed, chosen = render_best(trials, inputs, records, context.console)
    seconds = {"search": scored - started, "confirmation": time.monotonic() - scored}
    searched = Searched(trials=tuple(trials), confirmed=confirmed, chosen=chosen, seconds=seconds)
    context.console.print(search_table(searched, inputs.space))
    context.console.print(escape(f"search logs: tensorboard --logdir {logs}"), soft_wrap=True)
    return searched, inputs.space.candidate(trials[chosen].parameters)


def search_table(searched: Searched, space: SearchSpace) -> Table:
    """Return the scores of the rendered candidates, the start first."""
    table = Table(title="Co-Merge: candidates rendered on validation prompts", title_justify="left")
    for name in ("trial", "form", "surrogate", "objective", "IP", "worst IP", "benign failed", "context lost"):
        table.add_column(name, justify="left" if name == "form" else "right")
    for position, score in sorted(searched.confirmed.items()):
        trial = searched.trials[position]
        form = space.candidate(trial.parameters)
        label = f"{position}{' (start)' if position == 0 else ''}{' *' if position == searched.chosen else ''}"
        figures = (trial.score, score.objective, score.ip, score.worst_ip, score.benign_failed, score.context_lost)
        table.add_row(
            label, f"{form.granularity}, {form.score}, {form.selection}", *(f"{figure:.3f}" for figure in figures)
        )
    return table
