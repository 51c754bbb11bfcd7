"""The protocol of a merge method, its registry, and the config that selects one: experts in, one LoRA out.

A new method is one file in ``safety.merge.methods``: its config, its label, its needs and its registration.

A run's searched Co-Merge and its start have fixed names. A baseline has its method's name, with a number where that name
is taken: a second task arithmetic is "task-arithmetic-2", a Co-Merge with given parameters "co-merge-2".
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple, Protocol, Union

from pydantic import BeforeValidator, Field, SerializeAsAny, TypeAdapter

from safety.base import Config
from safety.lora.weights import LoraWeights
from safety.merge.calibration import Calibration
from safety.registry import Registry

Need = Literal["calibration"]
"""An input beside the experts that a method may read; it is computed only where a method needs it."""
CALIBRATION: Need = "calibration"
SEARCHED, START = "co-merge", "co-merge-default"
LABELS = {SEARCHED: "Co-Merge (searched)", START: "Co-Merge (start)"}


class MethodConfig(Config):
    """The parameters of a merge method; a subclass narrows ``name`` to the method's name in the registry."""

    name: str


class MergeResult(NamedTuple):
    """One merged LoRA and the report on its making."""

    weights: LoraWeights
    report: dict[str, Any]
    """Plain values for report.json: method, experts, layers, ranks, and the method's own figures."""


class MergeMethod(Protocol):
    """Merges LoRA experts of one architecture into one LoRA."""

    label: str
    """The method's name in reports and plots."""
    config_type: type[MethodConfig]
    """The typed parameters that the method reads, tagged with its name."""
    needs: frozenset[Need]
    """The inputs that the method reads beside the experts."""

    def __call__(
        self, experts: Mapping[str, LoraWeights], statistics: Calibration | None, config: Any, /
    ) -> MergeResult:
        """Return the merge of the experts, which are taken in the mapping's order.

        ``statistics`` may be None for a method that does not need "calibration".
        """


merge_methods: Registry[MergeMethod] = Registry("merge method", "safety.merge.methods")


def parse_method(value: Any) -> MethodConfig:
    """Return the typed config of a method's name or of a mapping ``{name: ..., <parameters>}``.

    Raises pydantic's ValidationError, which names the wrong field, and for an unknown name the known ones.
    """
    types = tuple(method.config_type for method in merge_methods.values())
    # Built at each call, since a method may be registered at any time before it is used.
    tagged: Any = Annotated[Union[types], Field(discriminator="name")]  # noqa: UP007
    config: MethodConfig = TypeAdapter(tagged).validate_python({"name": value} if isinstance(value, str) else value)
    return config


AnyMethodConfig = Annotated[SerializeAsAny[MethodConfig], BeforeValidator(parse_method)]
"""A method's name, or a mapping of its name and parameters."""


def base_report(experts: Mapping[str, LoraWeights], weights: LoraWeights, config: MethodConfig) -> dict[str, Any]:
    """Return the part of the report that every method gives."""
    return {
        "method": config.name,
        "experts": list(experts),
        "config": config.model_dump(mode="json", exclude={"name"}),
        "ranks": {name: layer.rank for name, layer in weights.items()},
        "parameters": sum(layer.down.numel() + layer.up.numel() for layer in weights.values()),
    }


def name_baselines(configs: Sequence[MethodConfig]) -> dict[str, MethodConfig]:
    """Return the baselines by a name that no other merge of the run has."""
    taken = Counter([SEARCHED])
    named: dict[str, MethodConfig] = {}
    for config in configs:
        taken[config.name] += 1
        count = taken[config.name]
        named[config.name if count == 1 else f"{config.name}-{count}"] = config
    return named


def merge_label(name: str) -> str:
    """Return the label of a run's merge; a name of no registered method is its own label."""
    if name in LABELS:
        return LABELS[name]
    if name in merge_methods:
        return merge_methods[name].label
    numbered = re.fullmatch(r"(.+)-(\d+)", name)
    if numbered and numbered[1] in merge_methods:
        return f"{merge_methods[numbered[1]].label} {numbered[2]}"
    return name
