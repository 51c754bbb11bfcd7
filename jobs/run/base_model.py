"""A run's base model as the driver knows it: by its content, without loading it, and without its bytes passing through."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from jobs.run.config import RunConfig
from jobs.run.placement import Place, placed_unless_cheap
from jobs.run.places import generate_place
from safety.families.family import ModelConfig, configured_family, family_name, model_folder
from safety.families.identity import ModelIdentity, model_identity
from safety.families.model_index import absent_parts
from safety.families.source import hub_id, known_here, located
from safety.families.weight_files import read_json

ATTRIBUTION_FILE = "ATTRIBUTION.md"


class DescribedModel(NamedTuple):
    """What a release says of its base."""

    identity: ModelIdentity
    attribution: bytes | None
    """What a model's licence asks to be shown beside it."""
    pipeline: str
    """The diffusers class that draws with it."""
    sampler: str | None
    """The class of its own sampler; None where it names none."""
    hub_id: str | None = None
    """Its id on a hub, where it came from there; None: it is a folder or file of the user's."""
    absent: tuple[str, ...] = ()
    """Parts of its pipeline that it does without."""
    single_file: bool = False
    """Whether it is one file, and no folder."""


def identify(run: RunConfig) -> ModelIdentity:
    """Return the model's identity, read where the first stage loads it.

    Raises:
        ConfigError: There is no such model, or no family takes it.
        ArtifactFormatError: One of its files is damaged.
        ClusterError: It cannot be fetched, or no node could read it in time.
    """
    return placed_unless_cheap(_place(run), model_identity, run.model)


def describe_model(run: RunConfig) -> DescribedModel:
    """Return what a release says of the model; raises as ``identify`` does."""
    return placed_unless_cheap(_place(run), _describe, run.model)


def _place(run: RunConfig) -> Place:
    """Return where the model's files are read: on the nodes that draw with it, and without a GPU where it needs none."""
    place = generate_place(run)
    if run.model.device != "cpu":
        return place
    return replace(place, resources={name: amount for name, amount in place.resources.items() if name != "GPU"})


def _describe(config: ModelConfig) -> DescribedModel:
    folder = model_folder(config)
    attribution, scheduler = folder / ATTRIBUTION_FILE, folder / "scheduler" / "scheduler_config.json"
    return DescribedModel(
        model_identity(config),
        attribution.read_bytes() if attribution.is_file() else None,
        configured_family(config).pipeline_class,
        read_json(scheduler).get("_class_name") if scheduler.is_file() else None,
        hub_id(config),
        tuple(absent_parts(folder)),
        located(config.path, config).is_file(),
    )


def find_family(run: RunConfig) -> str:
    """Return the name of the model's family, found where the first stage loads it if the model does not lie on this machine.

    A single file at an address is fetched for it as a whole, which the driver is not to do. Raises as ``identify`` does.
    """
    if known_here(run.model):
        return family_name(run.model)
    return placed_unless_cheap(_place(run), family_name, run.model)


def require_known_family(run: RunConfig) -> None:
    """Look at a model that lies on this machine before Ray starts: its class or layout must be a family's.

    What a worker alone can see, or has to be fetched, is looked at there, before a job's first stage.

    Raises:
        ConfigError: No family takes it, or it is no form of a model.
        ArtifactFormatError: Its index, or the header of its single file, is damaged.
    """
    if known_here(run.model):
        family_name(run.model)
