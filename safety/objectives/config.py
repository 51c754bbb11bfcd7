"""The objective in a config: a union over all registered objectives, discriminated by ``name``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Union

from pydantic import Field

from safety.objectives.objective import ObjectiveParameters, objectives

if TYPE_CHECKING:
    ObjectiveConfig = ObjectiveParameters
else:
    # Built from the registry, so that a new objective is one file. The discriminator keeps validation errors short:
    # they name the fields of the chosen objective alone.
    ObjectiveConfig = Annotated[
        Union[tuple(kind.config_type for kind in objectives.values())],  # noqa: UP007
        Field(discriminator="name"),
    ]
