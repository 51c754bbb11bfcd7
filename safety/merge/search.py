"""The search space of Co-Merge's parameters, and the rule by which the search decides.

The search proposes multipliers on a start configuration, so that the start itself is a point of the space. It is always
trial 0 and always rendered, so that by the rendered score the search cannot lose to it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from pydantic import Field, field_validator

from safety.base import Config
from safety.merge.methods.co_merge import UNET_GROUPS, BlockGroup, CoMergeConfig

Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
Parameters = dict[str, Any]
"""One point of the space, flat: names such as ``strength``, ``expert:violence``, ``block:mid``."""


class SearchConfig(Config):
    """The extent of the search: its trials, its candidates and the ranges of its parameters."""

    trials: int = Field(24, gt=0, description="candidates scored by the surrogate, the start included")
    confirm: int = Field(4, ge=0, description="best trials that are rendered, besides the start")
    startup: int = Field(12, gt=0, description="trials before Optuna's model proposes")
    strength: float = Field(
        8.0,
        gt=1,
        description="all lambdas are multiplied by 1/strength ... strength; a factor as large as the number of experts "
        "turns an even mix of them into their sum",
    )
    expert_spread: float = Field(1.6, ge=1, description="one expert's lambda, by 1/spread ... spread")
    block_spread: float = Field(1.6, ge=1, description="one block group's factor, by 1/spread ... spread")
    benign: tuple[Positive, Positive] = Field((0.25, 4.0), description="range of the benign prompts' weight")
    tau: tuple[Share, Share] = Field((0.0, 0.2), description="range of the soft selection's least share")
    temperature: tuple[Positive, Positive] = Field(
        (0.02, 10.0),
        description="range of the soft selection's temperature; shares differ by 1 at most, so 10 mixes evenly",
    )

    max_weight_bytes: int = Field(
        64 * 2**20,
        ge=0,
        description="granularity 'weight' is tried where the dense fp32 matrices of one candidate, all layers together, take "
        "at most so many bytes, or where the search starts from it; said when the merge begins",
    )

    @field_validator("benign", "tau", "temperature")
    @classmethod
    def _ascending(cls, limits: tuple[float, float]) -> tuple[float, float]:
        if limits[0] > limits[1]:
            raise ValueError(f"it begins above its end; write [{limits[1]:g}, {limits[0]:g}]")
        return limits


class Trial(Config):
    """One finished trial."""

    parameters: dict[str, str | float]
    score: float
    harm: float
    drift: float
    harm_by_category: dict[str, float]
    seconds: float = Field(ge=0, description="time of merging and scoring")
    finished: float = Field(description="Unix time at its end")


class SearchSpace:
    """Translates between Optuna's parameters and Co-Merge configurations."""

    def __init__(
        self,
        experts: Sequence[str],
        start: CoMergeConfig,
        config: SearchConfig,
        groups: Sequence[BlockGroup] = UNET_GROUPS,
        weight_bytes: int = 0,
    ) -> None:
        """Span the space.

        Args:
            experts: The experts' names.
            start: The configuration that the search starts from.
            config: The ranges.
            groups: The block groups whose factors are searched (``co_merge.block_groups``).
            weight_bytes: What ``safety.merge.weight_form.dense_bytes`` says of the experts.
        """
        self.experts, self.base, self.config, self.groups = tuple(experts), start, config, tuple(groups)
        left_out = weight_bytes > config.max_weight_bytes and start.granularity != "weight"
        self.granularities = ("row", "input") if left_out else ("row", "weight", "input")

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        """Return the space as Optuna's distributions; ranges that exclude the start are widened to include it."""

        def around(width: float) -> FloatDistribution:
            return FloatDistribution(1.0 / width, width, log=True)

        benign, tau, temperature = (
            (min(low, value), max(high, value))
            for (low, high), value in (
                (self.config.benign, self.base.gate.benign),
                (self.config.tau, self.base.tau),
                (self.config.temperature, self.base.temperature),
            )
        )
        return {
            "granularity": CategoricalDistribution(self.granularities),
            # Zero, which a start may have, is no number of a logarithmic scale.
            "benign": FloatDistribution(*benign, log=benign[0] > 0),
            "score": CategoricalDistribution(("vote", "sum")),
            "selection": CategoricalDistribution(("hard", "soft")),
            "tau": FloatDistribution(*tau),
            "temperature": FloatDistribution(*temperature, log=True),
            "strength": around(self.config.strength),
            **{f"expert:{name}": around(self.config.expert_spread) for name in self.experts},
            **{f"block:{group}": around(self.config.block_spread) for group in self.groups},
        }

    def holds(self, parameters: Mapping[str, Any]) -> bool:
        """Return whether a point is one of this space: it has its parameters and no other, each within its range."""
        limits = self.distributions
        return parameters.keys() == limits.keys() and all(
            parameters[name] in limit.choices
            if isinstance(limit, CategoricalDistribution)
            else isinstance(parameters[name], int | float) and limit.low <= parameters[name] <= limit.high
            for name, limit in limits.items()
        )

    @property
    def start(self) -> Parameters:
        """Return the point of the start configuration."""
        return {
            "granularity": self.base.granularity,
            "benign": self.base.gate.benign,
            "score": self.base.score,
            "selection": self.base.selection,
            "tau": self.base.tau,
            "temperature": self.base.temperature,
            "strength": 1.0,
            **{f"expert:{name}": 1.0 for name in self.experts},
            **{f"block:{group}": 1.0 for group in self.groups},
        }

    @property
    def first_points(self) -> list[Parameters]:
        """Return the points tried first: the start, the plain forms, and granularity "input" at several strengths.

        A larger weight of benign prompts leaves less of the experts, so strength and weight are raised together.
        """
        half, full = self.config.strength**0.5, self.config.strength
        total = min(full, float(len(self.experts)))
        variations: tuple[Parameters, ...] = (
            {},
            {"strength": half},
            {"strength": full},
            {"selection": "soft", "temperature": self.distributions["temperature"].high, "strength": total},
            *([{"granularity": "weight", "strength": half}] if "weight" in self.granularities else []),
            *(
                {"granularity": "input", **{name: self._inside(name, size) for name in ("strength", "benign")}}
                for size in (1.0, 1.5, 2.0, 2.5)
            ),
        )
        points = [self.start | variation for variation in variations]
        return [point for index, point in enumerate(points) if point not in points[:index]]

    def _inside(self, name: str, value: float) -> float:
        """Return the value clamped to its parameter's range."""
        limits = self.distributions[name]
        return min(max(value, float(limits.low)), float(limits.high))

    def candidate(self, parameters: Mapping[str, Any]) -> CoMergeConfig:
        """Return the configuration at a point; at the start's point it is the start configuration itself."""
        if dict(parameters) == self.start:
            return self.base
        strength = float(parameters["strength"])
        lambdas = {
            name: self.base.lambdas.get(name, 1.0) * strength * float(parameters[f"expert:{name}"])
            for name in self.experts
        }
        blocks = self.base.block_factors | {
            group: self.base.block_factors.get(group, 1.0) * float(parameters[f"block:{group}"])
            for group in self.groups
        }
        return self.base.model_copy(
            update={
                **{key: parameters[key] for key in ("granularity", "score", "selection", "tau", "temperature")},
                "gate": self.base.gate.model_copy(update={"benign": parameters["benign"]}),
                "lambdas": {name: value for name, value in lambdas.items() if value != 1.0},
                "block_factors": {group: value for group, value in blocks.items() if value != 1.0},
            }
        )

    def sampler(self, seed: int) -> optuna.samplers.BaseSampler:
        """Return Optuna's TPE sampler (Bergstra et al., 2011), seeded."""
        return optuna.samplers.TPESampler(seed=seed % 2**32, n_startup_trials=self.config.startup)


def in_order(trials: Iterable[Trial], start: Mapping[str, Any]) -> list[Trial]:
    """Return the distinct trials, the start first and the others in the order in which they finished.

    Raises ValueError when the start is not among them.
    """
    ordered = sorted(trials, key=lambda trial: (trial.parameters != dict(start), trial.finished))
    distinct: list[Trial] = []
    for trial in ordered:
        if all(trial.parameters != other.parameters for other in distinct):
            distinct.append(trial)
    if not distinct or distinct[0].parameters != dict(start):
        raise ValueError("the start is not among the finished trials")
    return distinct


def shortlist(trials: Sequence[Trial], count: int) -> list[int]:
    """Return the positions of the start, 0, and of the ``count`` best others by score; ties keep their order."""
    others = sorted(range(1, len(trials)), key=lambda index: (trials[index].score, index))
    return [0, *others[:count]]


def best(objectives: Mapping[int, float]) -> int:
    """Return the position with the smallest objective; ties go to the lowest position, the start's being 0."""
    return min(objectives, key=lambda index: (objectives[index], index))
