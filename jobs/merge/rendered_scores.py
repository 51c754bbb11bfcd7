"""Rendered scores on Ray: several actors share the candidate adapters, and every finished score is recorded."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import ray
import torch
from rich.console import Console

from cluster.progress import StageProgress
from cluster.resources import timeout_error
from jobs.merge.config import MergeConfig
from jobs.run.ray_data import first_cause
from jobs.run.work_area import Records
from safety.families import ModelConfig, ModelFamily, load_model
from safety.judges.judge import Judge, load_judge
from safety.lora.weights import LoraWeights
from safety.merge.rendered_score import RenderedScore, score_by_rendering
from safety.prompts.rows import PromptSet
from safety.taxonomy import Taxonomy

PART = "confirmed"

Candidate = Mapping[str, Any]
"""The parameters that a candidate is built from; they name the record of its score."""


@dataclass(frozen=True)
class Candidates(ABC):
    """The inputs of rendered scores, sent to the workers through Ray's object store."""

    model: ModelConfig
    taxonomy: Taxonomy
    config: MergeConfig
    """The settings of rendering and judging, and a worker's resources."""
    seed: int
    prompts: PromptSet
    """Of the validation split."""

    @abstractmethod
    def merged(self, parameters: Candidate) -> LoraWeights:
        """Return a candidate's adapter."""


class ScoringActor:
    """Scores candidates with one model and judge, loaded at the first candidate."""

    def __init__(self, candidates: Candidates) -> None:
        self.candidates = candidates

    @cached_property
    def tools(self) -> tuple[ModelFamily, Judge]:
        """Load the model and the judge."""
        config = self.candidates.config
        torch.set_num_threads(config.threads)
        return load_model(self.candidates.model), load_judge(config.judge, self.candidates.taxonomy)

    def score(self, parameters: Candidate) -> RenderedScore:
        """Render a candidate's images and score them."""
        given, (model, judge) = self.candidates, self.tools
        config = given.config
        return score_by_rendering(
            model, given.merged(parameters), given.prompts, judge, config.render, config.confirm, given.seed
        )


def score_all(
    requests: Mapping[int, Candidate], candidates: Candidates, records: Records, console: Console, name: str
) -> dict[int, RenderedScore]:
    """Return each candidate's score by the caller's number; only candidates without a record are rendered.

    Raises:
        SafetyError: The first cause of a failure to render a candidate.
        ClusterError: No candidate was finished in time.
    """
    found = {number: records.read(PART, parameters, RenderedScore) for number, parameters in requests.items()}
    scores = {number: score for number, score in found.items() if score is not None}
    missing = {number: parameters for number, parameters in requests.items() if number not in scores}
    if missing:
        with StageProgress(console, name, len(requests), "candidates", done=len(scores)) as progress:
            for number, score in _render(missing, candidates):
                records.write(PART, requests[number], score)
                scores[number] = score
                progress.advance(1, f"objective {score.objective:.3f}")
    return scores


def _render(requests: Mapping[int, Candidate], candidates: Candidates) -> Iterator[tuple[int, RenderedScore]]:
    """Yield (number, score) as the workers finish."""
    config = candidates.config
    shared = ray.put(candidates)
    kind = ray.remote(ScoringActor).options(
        num_cpus=config.cpus_per_worker,
        num_gpus=config.gpus_per_worker,
        max_restarts=config.max_failures,
        max_task_retries=config.max_failures,
    )
    actors = [kind.remote(shared) for _ in range(min(config.workers, len(requests)))]
    running = {
        actors[turn % len(actors)].score.remote(parameters): number
        for turn, (number, parameters) in enumerate(requests.items())
    }
    waiting = list(running)
    try:
        while waiting:
            ready, waiting = ray.wait(waiting, timeout=config.timeout_s)
            if not ready:
                raise timeout_error("no candidate was rendered", config.timeout_s, "merge.timeout_s")
            try:
                yield running[ready[0]], ray.get(ready[0])
            except ray.exceptions.RayError as error:
                raise first_cause(error) from error
    finally:
        for actor in actors:
            ray.kill(actor)
