"""What a run's settings ask for and its base model cannot do, with what is done instead: said before any work."""

from __future__ import annotations

from typing import NamedTuple

from cluster.errors import ClusterError
from cluster.preflight.check import Finding, passed, warned
from jobs.run.base_model import find_family
from jobs.run.config import RunConfig
from safety.errors import SafetyError
from safety.families.family import families
from safety.merge.methods.co_merge import CoMergeConfig


class Notice(NamedTuple):
    """One setting that has no effect on the run's model."""

    field: str
    message: str
    instead: str
    """What the run does."""

    def __str__(self) -> str:
        """Return the notice as one line."""
        return f"{self.field}: {self.message}; {self.instead}"


def notices(run: RunConfig) -> list[Notice]:
    """Return the settings without effect; none for a model that cannot be found, which is another check's to report.

    Call it when the run's cluster is connected: a model that lies elsewhere is looked at by a worker.
    """
    try:
        family = find_family(run)
    except (SafetyError, ClusterError):
        return []
    return _of_family(run, family)


def _of_family(run: RunConfig, family: str) -> list[Notice]:
    model_class = families[family].model_class
    lora = run.train.expert.lora
    if lora.reads_prompt(model_class):
        return []
    targets = ", ".join(lora.targets_on(model_class))
    found = []
    if run.train.gate is not None:
        found.append(
            Notice(
                "train.gate",
                f"none of the layers that experts adapt ({targets}) reads the prompt alone in the family {family!r}",
                "experts are trained without gates",
            )
        )
    methods = [("merge.co_merge", run.merge.co_merge), *(("merge.baselines", each) for each in run.merge.baselines)]
    found += [
        Notice(
            f"{field}.granularity",
            f"'input' divides the directions of layers that read the prompt alone, and none is adapted in {family!r}",
            "their rows are merged",
        )
        for field, method in methods
        if isinstance(method, CoMergeConfig) and method.granularity == "input"
    ]
    return found


def check_notices(run: RunConfig) -> Finding:
    """Return a warning with every notice."""
    try:
        found = _of_family(run, find_family(run))
    except (SafetyError, ClusterError) as error:
        return warned(f"not checked: {error.message}", "fix the model first")
    if not found:
        return passed("the model does all that the settings ask for")
    return warned("; ".join(map(str, found)), "set train.gate to null to agree, or adapt a layer that reads the prompt")
