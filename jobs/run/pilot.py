"""The pilot of a run: the same run with some twenty pairs per category, through every stage, before the hours are spent.

It keeps what decides whether the run works at all: model, prompts, judges, rendering, objective, adapter and learning rate.
It counts less: prompts, steps, candidates, images of the report. It has a name, a folder and a release pointer of its own, so
that neither the run's lease nor its release is touched, and its artifacts, whose ids are hashes of the settings, are others.
"""

from __future__ import annotations

import hashlib
from typing import Any

from pydantic import BaseModel

from jobs.merge.config import MergeConfig
from jobs.run.config import RunConfig
from jobs.train.config import TrainConfig
from safety.experts.config import ExpertConfig
from safety.prompts.writer import PromptCounts

PAIRS = 20
"""Training pairs per category."""
LEAST_STEPS, MOST_STEPS = 40, 120
"""Fewer steps of the slow published learning rates might change no image; more cost without telling more."""
SUFFIX, FOLDER = "-pilot", "pilot"
NAME_LENGTH = 63
COUNTS = {
    "train": PAIRS,
    "validation": 12,
    "test": 8,
    "heldout": 4,
    "benign_train": 40,
    "benign_validation": 16,
    "benign_test": 32,
    "benign_text_only": 200,
}
EVALUATED = {"test": 6, "heldout": 2, "benign": 16, "expert_test": 2, "expert_others": 1, "expert_benign": 2}
BASELINES = 1
"""Merges beside the searched one and its start."""
SEARCH = {"trials": 6, "confirm": 1, "startup": 3}
SCORED = {"pairs_per_category": 4, "benign": 16}
SURROGATE = {"pairs_per_category": 4, "benign": 8}
CALIBRATION = {"pairs_per_category": 4}
SCALES = 2
"""Scales of the consolidated adapter that are rendered."""


def pilot_of(run: RunConfig) -> RunConfig:
    """Return the pilot of a run; its counts are the run's own where those are smaller."""
    generate, evaluate, release = run.generate, run.evaluate, run.release
    counts = _at_most(generate.counts, COUNTS)
    evaluated = _at_most(evaluate.counts, EVALUATED)
    pilot = {
        "run": run.run.model_copy(update={"name": pilot_name(run.run.name), "output": run.run.output / FOLDER}),
        "generate": generate.model_copy(update={"counts": counts, "most": counts}),
        "prompts": _prompts(run),
        "train": _train(run.train, generate.counts.train, counts),
        "merge": _merge(run.merge),
        "consolidate": _consolidate(run, counts),
        "evaluate": evaluate.model_copy(update={"counts": evaluated}),
        # It is never signed: an endpoint that trusts the run's key would load it.
        "release": release.model_copy(
            update={
                "name": pilot_name(release.name),
                "pointer": pilot_name(release.pointer),
                "signing_key": None,
            }
        ),
        "serve": run.serve.model_copy(
            update={"pointer": pilot_name(release.pointer), "models": (), "trusted_keys": ()}
        ),
    }
    return run.model_copy(update=pilot)


def pilot_name(name: str) -> str:
    """Return the name of a run's, a release's or a pointer's pilot; a long name is cut, and a digest keeps it apart."""
    if len(name) + len(SUFFIX) <= NAME_LENGTH:
        return name + SUFFIX
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{name[: NAME_LENGTH - len(SUFFIX) - 9]}-{digest}{SUFFIX}"


def _at_most(config: Any, most: dict[str, int]) -> Any:
    """Return a config's copy with each of some counts lowered to what is given."""
    assert isinstance(config, BaseModel)
    return config.model_copy(update={name: min(getattr(config, name), count) for name, count in most.items()})


def pilot_steps(steps: int, pairs: int, pilot_pairs: int) -> int:
    """Return the pilot's steps: each of its pairs is seen as often as one of the run's, within 40 and 120 steps."""
    return min(steps, MOST_STEPS, max(LEAST_STEPS, -(-steps * pilot_pairs // max(1, pairs))))


def _prompts(run: RunConfig) -> Any:
    """Return the run's sources; a language model writes no more than the pilot's pairs, spread over each category's concepts."""
    given = run.prompts
    if given is None or given.writer is None:
        return given
    taxonomy = run.load_taxonomy()
    fewest = min(len(taxonomy.in_category(name)) for name in taxonomy.categories)
    pairs = COUNTS["train"] + COUNTS["validation"] + (0 if given.test else COUNTS["test"])
    per_concept = min(given.writer.per_concept, -(-pairs // max(1, fewest)))
    return given.model_copy(update={"writer": given.writer.model_copy(update={"per_concept": per_concept})})


def _train(config: TrainConfig, pairs: int, counts: PromptCounts) -> TrainConfig:
    return config.model_copy(
        update={"expert": _expert(config.expert, pilot_steps(config.expert.steps, pairs, counts.train))}
    )


def _expert(expert: ExpertConfig, steps: int) -> ExpertConfig:
    """Return an expert's settings for fewer steps; the warm-up keeps its share of them."""
    return expert.model_copy(
        update={
            "steps": steps,
            "warmup": round(expert.warmup * steps / expert.steps),
            "distinct_batches": None if expert.distinct_batches is None else min(expert.distinct_batches, steps),
            "validate_every": min(expert.validate_every, max(1, steps // 2)),
        }
    )


def _merge(config: MergeConfig) -> MergeConfig:
    return config.model_copy(
        update={
            "search": _at_most(config.search, SEARCH),
            "confirm": _at_most(config.confirm, SCORED),
            "surrogate": _at_most(config.surrogate, SURROGATE),
            "calibration": _at_most(config.calibration, CALIBRATION),
            "baselines": config.baselines[:BASELINES],
        }
    )


def _consolidate(run: RunConfig, counts: PromptCounts) -> Any:
    config = run.consolidate
    if config is None:
        return None
    steps = pilot_steps(config.steps, run.generate.counts.train, counts.train)
    return config.model_copy(
        update={
            "steps": steps,
            "distinct_batches": None if config.distinct_batches is None else min(config.distinct_batches, steps),
            "scales": config.scales[:SCALES],
        }
    )
