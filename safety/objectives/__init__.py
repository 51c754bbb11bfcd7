"""What experts minimise: objectives by name."""

from typing import Annotated

from pydantic import Field

from safety.objectives.anchored_dpo import AnchoredDpo, AnchoredDpoConfig
from safety.objectives.diffusion_dpo import DiffusionDpo, DiffusionDpoConfig
from safety.objectives.objective import Objective, ObjectiveValue, PreferenceErrors, objectives

ObjectiveConfig = Annotated[AnchoredDpoConfig | DiffusionDpoConfig, Field(discriminator="name")]
"""The config of any objective; its ``name`` is the objective's name in the registry."""

__all__ = [
    "AnchoredDpo",
    "AnchoredDpoConfig",
    "DiffusionDpo",
    "DiffusionDpoConfig",
    "Objective",
    "ObjectiveConfig",
    "ObjectiveValue",
    "PreferenceErrors",
    "objectives",
]
