"""Merges the experts into one LoRA: Co-Merge with searched coefficients, its plain form, and its first neighbours."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch
from pydantic import BaseModel
from rich.table import Table

from cluster.resources import require, timeout_error
from jobs.merge.config import MergeConfig
from jobs.merge.files import Recipe, Searched, fill_merge
from jobs.merge.search import SearchInputs, confirm_best, search
from jobs.run.artifacts import ArtifactRef, StageContext, artifact_ref, finished, publish
from jobs.run.links import SEARCH_FOLDER
from jobs.run.ray_data import first_cause
from jobs.run.work_area import Records
from jobs.train.gate_moments import GateMomentsTask, gate_moments_task
from safety.dataset.layout import latents_file
from safety.dataset.preferences import PreferenceSet, load_preferences
from safety.errors import ConfigError
from safety.families import ModelConfig, load_model
from safety.judges.judge import load_judge
from safety.lora.files import check_fits, load_lora
from safety.lora.weights import LoraWeights
from safety.merge.average import AverageConfig
from safety.merge.calibration import Calibration, CalibrationConfig, calibrate, load_calibration
from safety.merge.method import merge_methods
from safety.merge.probes import Probes, gather_probes
from safety.merge.rendered_score import SPLIT, choose_prompts
from safety.merge.search import SearchSpace
from safety.prompts.files import PROMPTS_FILE, read_prompt_file
from safety.prompts.rows import PromptSet
from safety.taxonomy import Taxonomy

KIND, CALIBRATION_KIND = "merge", "calibration"
CALIBRATION_FILE = "calibration.safetensors"
SEARCHED, DEFAULT, AVERAGE, TASK_ARITHMETIC = "co-merge", "co-merge-default", "average", "concatenation"
METHODS = {SEARCHED: "co-merge", DEFAULT: "co-merge", AVERAGE: "average", TASK_ARITHMETIC: "concatenation"}
"""Each merge's method in the registry."""


@dataclass(frozen=True)
class _Source:
    """What is merged, and on what it is calibrated and scored."""

    context: StageContext
    taxonomy: Taxonomy
    dataset: ArtifactRef
    experts: dict[str, ArtifactRef]

    @property
    def config(self) -> MergeConfig:
        return self.context.run.merge

    @property
    def seed(self) -> int:
        return self.context.run.run.seed

    @property
    def parents(self) -> list[ArtifactRef]:
        return [self.dataset, *self.experts.values()]

    def weights(self) -> dict[str, LoraWeights]:
        return {name: load_lora(self.context.folder(ref)) for name, ref in self.experts.items()}

    def sets(self) -> dict[str, PreferenceSet]:
        folder = self.context.folder(self.dataset)
        return {name: load_preferences(folder / latents_file(name)) for name in self.experts}

    def prompts(self) -> PromptSet:
        return read_prompt_file(self.context.folder(self.dataset) / PROMPTS_FILE)


def run(context: StageContext, dataset: ArtifactRef, experts: Mapping[str, ArtifactRef]) -> dict[str, ArtifactRef]:
    """Merge the experts of the taxonomy's categories in every way; what is published already is not made again.

    Args:
        context: The run.
        dataset: Its training split calibrates the merge and its validation split scores it; the test splits are
            never read.
        experts: Expert artifacts by name; names that are no category ("all-single") are left out.

    Returns:
        The merges by name: "co-merge" (searched), "co-merge-default", "average", "concatenation".

    Raises:
        ConfigError: There is no expert of a category, or a setting names an expert that is not there.
        ArtifactFormatError: The experts do not fit each other or the base model.
        EmptyDatasetError: A category has no row in a split that is needed.
        ImpossibleResources: The cluster can never run a worker.
    """
    taxonomy = context.run.load_taxonomy()
    source = _Source(context, taxonomy, dataset, _chosen(taxonomy, experts))
    settings = {name: _settings(source, name) for name in METHODS}
    refs = {name: artifact_ref(context, KIND, settings[name], source.parents) for name in METHODS}
    missing = []
    for name, ref in refs.items():
        if finished(context, ref):
            context.console.print(f"merge {name} {ref.id}: already published and verified")
        else:
            missing.append(name)
    if missing:
        _merge(source, {name: (refs[name], settings[name]) for name in missing})
    return refs


def _chosen(taxonomy: Taxonomy, experts: Mapping[str, ArtifactRef]) -> dict[str, ArtifactRef]:
    """Return the categories' experts in the taxonomy's order."""
    chosen = {name: experts[name] for name in taxonomy.categories if name in experts}
    if not chosen:
        raise ConfigError(
            f"there is no expert of any category among: {', '.join(experts) or 'none'}",
            field="train",
            fix="train at least one category's expert first",
        )
    return chosen


def _settings(source: _Source, name: str) -> dict[str, Any]:
    """Return all that a merge depends on beside its parents; where the work runs is not part of it."""
    settings = {"model": source.context.run.model.model_dump(mode="json"), **source.config.recipe(name)}
    if name == SEARCHED:
        settings["judge"] = judge_settings(source.config, source.taxonomy)
    return settings


def judge_settings(config: MergeConfig, taxonomy: Taxonomy) -> dict[str, Any]:
    """Return what a choice by rendered images depends on of its judge."""
    judge = load_judge(config.judge, taxonomy)
    return {"name": judge.name, "version": judge.version, "threshold": judge.threshold}


def _merge(source: _Source, missing: Mapping[str, tuple[ArtifactRef, dict[str, Any]]]) -> None:
    """Make and publish the missing merges, the searched one last."""
    context, config = source.context, source.config
    require(config.resources(), "merge.cpus_per_worker, merge.gpus_per_worker")
    weights = source.weights()
    measured = _calibration(source, weights)
    plain: dict[str, BaseModel] = {
        DEFAULT: config.co_merge,
        AVERAGE: AverageConfig(),
        TASK_ARITHMETIC: config.concatenation,
    }
    for name, (ref, settings) in sorted(missing.items(), key=lambda item: item[0] == SEARCHED):
        searched: Searched | None = None
        parameters = plain.get(name)
        if parameters is None:
            searched, parameters = _search(source, ref, weights, measured.statistics)
        method = merge_methods[METHODS[name]]
        result = method(weights, measured.statistics, parameters)
        recipe = Recipe(
            name=name,
            method=METHODS[name],
            base_model=context.run.model.path,
            experts={expert: found.id for expert, found in source.experts.items()},
            dataset=source.dataset.id,
            calibration=measured.ref.id if method.needs_statistics else None,
            parameters=parameters.model_dump(mode="json"),
        )
        publish(context, ref, settings, source.parents, lambda to: fill_merge(to, recipe, result, searched))  # noqa: B023
        context.console.print(f"merge {name} {ref.id}: published")


@dataclass(frozen=True)
class _Measured:
    """The calibration artifact and what it holds."""

    ref: ArtifactRef
    statistics: Calibration


def _calibration(source: _Source, weights: dict[str, LoraWeights]) -> _Measured:
    """Return the calibration, gathered on a worker when it is not published yet."""
    context, config = source.context, source.config
    settings = {
        "model": context.run.model.model_dump(mode="json"),
        "calibration": config.calibration.model_dump(mode="json"),
    }
    ref = artifact_ref(context, CALIBRATION_KIND, settings, source.parents)
    if not finished(context, ref):
        started = time.monotonic()
        probes = gather_probes(source.sets(), "train", config.calibration.pairs_per_category, 0)
        task = ray.remote(calibrate_task).options(
            num_cpus=config.cpus_per_worker, num_gpus=config.gpus_per_worker, max_retries=config.max_failures
        )
        texts = gate_moments_task(context, source.dataset, tuple(source.experts))
        # What is damaged is discarded before the worker reads it.
        finished(context, texts.ref)
        asked = task.remote(context.run.model, weights, probes, texts, config.calibration, source.seed, config.threads)
        statistics: Calibration = _result(asked, config.timeout_s)
        publish(context, ref, settings, source.parents, lambda folder: statistics.save(folder / CALIBRATION_FILE))
        context.console.print(f"calibration {ref.id}: {time.monotonic() - started:.0f} s")
    return _Measured(ref, load_calibration(context.folder(ref) / CALIBRATION_FILE))


def calibrate_task(
    model: ModelConfig,
    experts: dict[str, LoraWeights],
    probes: Probes,
    texts: GateMomentsTask,
    config: CalibrationConfig,
    seed: int,
    threads: int,
) -> Calibration:
    """Gather the calibration's statistics in a worker; raise ArtifactFormatError when an expert is for another base."""
    torch.set_num_threads(threads)
    loaded = load_model(model)
    for expert in experts.values():
        check_fits(expert, loaded)
    return calibrate(loaded, experts, probes, texts.read(loaded), config, seed)


def _result(asked: Any, timeout_s: float) -> Any:
    """Return a Ray task's result; raise the first cause when it failed, and ClusterError when it takes too long."""
    try:
        return ray.get(asked, timeout=timeout_s)
    except ray.exceptions.GetTimeoutError as error:
        raise timeout_error("the calibration was not finished", timeout_s, "merge.timeout_s") from error
    except ray.exceptions.RayError as error:
        raise first_cause(error) from error


def _search(
    source: _Source, ref: ArtifactRef, weights: dict[str, LoraWeights], statistics: Calibration
) -> tuple[Searched, BaseModel]:
    """Search Co-Merge's coefficients; return what was found and the chosen configuration."""
    context, config = source.context, source.config
    inputs = SearchInputs(
        run=context.run.run.name,
        model=context.run.model,
        taxonomy=source.taxonomy,
        config=config,
        seed=source.seed,
        experts=weights,
        statistics=statistics,
        probes=gather_probes(source.sets(), SPLIT, config.surrogate.pairs_per_category, config.surrogate.benign),
        prompts=choose_prompts(source.prompts(), list(source.experts), config.confirm),
    )
    records = Records(context.store, f"work/{ref.kind}/{ref.id}")
    logs = _log_folder(context, ref)
    started = time.monotonic()
    trials = search(inputs, records, logs, context.console)
    scored = time.monotonic()
    confirmed, chosen = confirm_best(trials, inputs, records, context.console)
    seconds = {"search": scored - started, "confirmation": time.monotonic() - scored}
    searched = Searched(trials=tuple(trials), confirmed=confirmed, chosen=chosen, seconds=seconds)
    context.console.print(search_table(searched, inputs.space))
    context.console.print(f"search logs: tensorboard --logdir {logs}", soft_wrap=True)
    return searched, inputs.space.candidate(trials[chosen].parameters)


def _log_folder(context: StageContext, ref: ArtifactRef) -> Path:
    return context.run.run.output / SEARCH_FOLDER / ref.id


def search_table(searched: Searched, space: SearchSpace) -> Table:
    """Return the confirmed merges' scores, the start first."""
    table = Table(title="Co-Merge: confirmed on rendered validation images", title_justify="left")
    for name in ("trial", "form", "surrogate", "objective", "IP", "worst IP", "benign failed", "context lost"):
        table.add_column(name, justify="left" if name == "form" else "right")
    for position, seen in sorted(searched.confirmed.items()):
        trial = searched.trials[position]
        form = space.candidate(trial.parameters)
        label = f"{position}{' (start)' if position == 0 else ''}{' *' if position == searched.chosen else ''}"
        figures = (trial.score, seen.objective, seen.ip, seen.worst_ip, seen.benign_failed, seen.context_lost)
        table.add_row(
            label, f"{form.granularity}, {form.score}, {form.selection}", *(f"{figure:.3f}" for figure in figures)
        )
    return table
