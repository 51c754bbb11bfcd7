"""Where each stage's models and judges are loaded, by the settings of its resources."""

from __future__ import annotations

from jobs.run.config import RunConfig
from jobs.run.placement import Place
from safety.prompts.llm.config import LlmWriterConfig


def generate_place(run: RunConfig) -> Place:
    """Return the place of a diffusion actor."""
    config = run.generate
    return Place(
        "a diffusion actor of generate",
        run.model.device,
        config.resources(),
        "generate.cpus_per_actor",
        "generate.gpus_per_actor",
        config.timeout_s,
        "generate.timeout_s",
    )


def writer_place(config: LlmWriterConfig) -> Place:
    """Return the place of the actor of a language model that writes prompts."""
    return Place(
        "a language model's actor",
        config.engine.runs_on,
        config.resources(),
        "prompts.writer.cpus_per_actor",
        "prompts.writer.gpus_per_actor",
        config.timeout_s,
        "prompts.writer.timeout_s",
    )


def judge_place(run: RunConfig) -> Place:
    """Return the place of a judge in generation."""
    config = run.generate
    return Place(
        "a judge of generate",
        "cpu",
        config.judge_resources(),
        "generate.cpus_per_judge",
        "generate.gpus_per_judge",
        config.timeout_s,
        "generate.timeout_s",
    )


def train_place(run: RunConfig) -> Place:
    """Return the place of an expert's worker."""
    config = run.train
    return Place(
        "a worker of train",
        run.model.device,
        config.resources(),
        "train.cpus_per_worker",
        "train.gpus_per_worker",
        config.timeout_s,
        "train.timeout_s",
    )


def merge_place(run: RunConfig, what: str = "a worker of merge") -> Place:
    """Return the place of a merge's worker, which calibrates, tries and renders candidates."""
    config = run.merge
    return Place(
        what,
        run.model.device,
        config.resources(),
        "merge.cpus_per_worker",
        "merge.gpus_per_worker",
        config.timeout_s,
        "merge.timeout_s",
        config.max_failures,
    )


def evaluate_place(run: RunConfig) -> Place:
    """Return the place of an evaluation's actor; a release is checked there too, since it renders with the same settings."""
    config = run.evaluate
    return Place(
        "an actor of evaluate",
        run.model.device,
        config.resources(),
        "evaluate.cpus_per_actor",
        "evaluate.gpus_per_actor",
        config.timeout_s,
        "evaluate.timeout_s",
    )


def serve_place(run: RunConfig) -> Place:
    """Return the place of an endpoint's replica."""
    config = run.serve
    return Place(
        "a replica of serve",
        run.model.device,
        {"CPU": config.num_cpus, "GPU": config.num_gpus},
        "serve.num_cpus",
        "serve.num_gpus",
        config.start_timeout_s,
        "serve.start_timeout_s",
    )
