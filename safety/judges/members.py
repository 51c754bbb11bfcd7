"""The judges inside a judge's settings: a combination is made of others, and what holds for one holds for each of them.

Importing it loads no torch.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic import ValidationError

from safety.judges.judge import JudgeConfig

COMBINATION, JUDGES = "combination", "judges"
NETWORK = ("weights", "prompts", "model")
"""Settings that name a network; judges of one name that differ in none of these have the same."""


def members(config: JudgeConfig) -> tuple[JudgeConfig, ...]:
    """Return the judges that decide: a combination's, at any depth, or the judge itself.

    A combination whose settings cannot be read stands for itself: loading it says what is wrong.
    """
    inside = config.settings.get(JUDGES) if config.name == COMBINATION else None
    if not inside:
        return (config,)
    try:
        return tuple(each for one in inside for each in members(JudgeConfig.model_validate(one)))
    except (TypeError, ValidationError):
        return (config,)


def shares_a_network(judge: JudgeConfig, others: Iterable[JudgeConfig]) -> bool:
    """Return whether a judge is one of the others, or they have a member in common, by name and network.

    Thresholds, classes, sentences and the like do not count: who takes two judges for one claims too little, and not too much.
    """
    known = [_network(each) for other in others for each in members(other)]
    return any(_network(each) in known for each in members(judge))


def _network(config: JudgeConfig) -> tuple[Any, ...]:
    return config.name, *(config.settings.get(name) for name in NETWORK)
