"""Brings a model, in whatever form it comes, into the one form that families load: a diffusers folder on this machine.

A path is taken for what lies there: a folder, a hub's cache folder or a single file. What does not lie here is fetched, from
a hub or from an address, once a machine. A single file is unpacked once (``single_file``), and another variant or VAE makes
a folder of links (``linked_folder``). Nothing is chosen from how a path is spelled.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from safety.embedded import EMBEDDED_MODEL, EMBEDDED_MODEL_FOLDER
from safety.errors import ConfigError, SafetyError
from safety.families import hub
from safety.families.linked_folder import link_folder
from safety.families.model_config import ModelConfig
from safety.families.model_index import model_parts
from safety.families.selection import files_read
from safety.families.single_file import layout_index
from safety.families.unpacking import unpack
from safety.families.vae import find_vae
from safety.families.weight_files import (
    INDEX_FILE,
    OTHER_WEIGHTS,
    PICKLED,
    broken,
    listed_parts,
    read_index,
    require_folder,
    require_weights,
)
from safety.fetchers import Place, fetch, is_address

CONVERT = "turn it into safetensors with python -m jobs.convert, if you trust it"


def model_folder(config: ModelConfig) -> Path:
    """Return the configured model as a diffusers folder on this machine, fetched and unpacked if need be.

    Raises:
        ConfigError: There is none, or a setting does not fit it.
        ArtifactFormatError: One of its files is damaged, of an unknown layout, or names a file outside the folder.
    """
    place = located(config.path, config)
    folder = unpack(place, config) if place.is_file() else place
    model_parts(folder)
    if not place.is_file():
        _require_none_of_a_single_file(config, folder)
    if config.variant is None and config.vae is None:
        return folder
    vae = None if config.vae is None else _other_vae(config.vae, folder, config)
    return link_folder(folder, config.variant, vae, config.cache_folder("linked"))


def _require_none_of_a_single_file(config: ModelConfig, folder: Path) -> None:
    """Raise ConfigError for settings that say what a folder says itself."""
    for name, what in (
        ("prediction", "a scheduler that says what the model predicts"),
        ("settings", "its own settings"),
    ):
        if getattr(config, name) is not None:
            raise ConfigError(
                f"{folder} has {what}", field=f"model.{name}", fix="leave the setting out: it is for single files"
            )


def _other_vae(path: str, folder: Path, config: ModelConfig) -> Path:
    """Return the folder of the VAE at a path, whose errors name its own setting; ``revision`` is the model's alone."""
    try:
        return find_vae(located(path, config.model_copy(update={"revision": None})), folder, config)
    except SafetyError as error:
        raise type(error)(error.message, field="model.vae", fix=error.fix) from error


def model_index(config: ModelConfig) -> dict[str, Any]:
    """Return the ``model_index.json`` of the configured model, or of the layout that a single file has.

    A single file is not unpacked for it, and of a folder that lies elsewhere its index alone is fetched. Raises as
    ``model_folder`` does.
    """
    place = _index_place(config)
    if place.is_file():
        return layout_index(place, config)
    return read_index(place)


def located(path: str, config: ModelConfig) -> Path:
    """Return the folder or single file on this machine that a path of a config stands for, fetched if need be.

    Raises:
        ConfigError: There is none, or it is no form of a model.
        ArtifactFormatError: It is pickled.
    """
    if is_address(path):
        _require_read(path)
        return _fetched(Place(path, config.endpoint, config.region, config.cache_folder("fetched")), config.variant)
    found = here(path, config.revision)
    if found is not None:
        return found
    if hub.HUB_ID.fullmatch(path):
        return _of_hub(path, config.revision, config.variant)
    raise ConfigError(
        f"no diffusers-format model in {path}: there is nothing",
        field="model.path",
        fix=f"name a folder that holds {INDEX_FILE}, a .safetensors file, a hub id (org/name) or an s3:// address",
    )


def here(path: str, revision: str | None) -> Path | None:
    """Return the folder or single file that lies at a path of this machine, or None when nothing does.

    Raises:
        ConfigError: It is no form of a model, or a cache folder without the revision.
        ArtifactFormatError: It is pickled.
    """
    if path == EMBEDDED_MODEL:
        return EMBEDDED_MODEL_FOLDER
    try:
        place = Path(path).expanduser()
        if place.is_dir():
            return hub.cached_snapshot(place, revision) if hub.is_cache_folder(place) else place
        if not place.is_file():
            return None
    # A folder that this user may not enter, a name that is too long, or the home of a user who is not there.
    except (OSError, RuntimeError) as error:
        raise ConfigError(
            f"{path} cannot be looked at ({error})",
            field="model.path",
            fix="open it to this user, or name another path",
        ) from None
    _require_read(path)
    if place.suffix != ".safetensors":
        raise ConfigError(
            f"{place} is no form of a model",
            field="model.path",
            fix=f"name the folder that holds {INDEX_FILE}, or a .safetensors file",
        )
    return place


def _require_read(path: str) -> None:
    """Raise ArtifactFormatError for the name of a single file whose format is not read."""
    kind = OTHER_WEIGHTS.get(PurePosixPath(path).suffix)
    if kind is not None:
        fix = CONVERT if kind == PICKLED else "name the model's diffusers folder, or its .safetensors file"
        raise broken(PurePosixPath(path), f"it is {kind}, and safetensors alone are read", fix)


def known_here(config: ModelConfig) -> bool:
    """Return whether the model lies on this machine, so that it can be looked at without fetching anything.

    Raises as ``here`` does.
    """
    if is_address(config.path):
        return False
    if here(config.path, config.revision) is not None:
        return True
    return hub.HUB_ID.fullmatch(config.path) is not None and _cached(config.path, config.revision) is not None


def hub_id(config: ModelConfig) -> str | None:
    """Return the id on a hub that a config's path stands for; None for what lies on this machine, or at an address.

    Raises as ``here`` does.
    """
    is_id = not is_address(config.path) and hub.HUB_ID.fullmatch(config.path) is not None
    return config.path if is_id and here(config.path, config.revision) is None else None


def _index_place(config: ModelConfig) -> Path:
    """Return a folder with the model's index, or its single file."""
    path = config.path
    if is_address(path):
        _require_read(path)
        return _fetched_index(Place(path, config.endpoint, config.region, config.cache_folder("fetched")))
    found = here(path, config.revision)
    if found is None and hub.HUB_ID.fullmatch(path):
        found = _cached(path, config.revision)
        if found is None or not (found / INDEX_FILE).is_file():
            return hub.download_index(path, config.revision)
    if found is None:
        return located(path, config)  # which says that there is nothing
    if found.is_dir():
        model_parts(found)
    return found


def _fetched(place: Place, variant: str | None) -> Path:
    """Return this machine's copy of a model."""
    return _kept(_fetched_once, place, variant)


def _fetched_index(place: Place) -> Path:
    """Return a folder with the index of the model at an address, or the single file that it names."""
    return _kept(_fetched_index_once, place)


def _kept(fetch_once: Any, *asked: Any) -> Path:
    """Return what this process fetched before, and fetch it again where the cache was deleted since."""
    found: Path = fetch_once(*asked)
    if not found.exists():
        fetch_once.cache_clear()
        found = fetch_once(*asked)
    return found


# A process asks for its model several times, and each look at an address costs a request.
@lru_cache(maxsize=8)
def _fetched_once(place: Place, variant: str | None) -> Path:
    def choose(names: Sequence[str]) -> list[str]:
        listed = listed_parts(read_index(_fetched_index(place))) if INDEX_FILE in names else None
        return files_read(names, variant, listed)

    return fetch(place, choose)


@lru_cache(maxsize=8)
def _fetched_index_once(place: Place) -> Path:
    return fetch(place, lambda names: [name for name in names if name == INDEX_FILE])


def _of_hub(hub_id: str, revision: str | None, variant: str | None) -> Path:
    """Return a hub model's snapshot: as it lies in the cache if it is whole there, so that a run reads one snapshot."""
    found = _cached(hub_id, revision)
    if found is not None and _is_whole(found, variant):
        return found
    try:
        return hub.download(hub_id, revision, variant)
    except ConfigError:
        if found is not None:  # What lacks in it is said where it is read.
            return found
        raise


def _cached(hub_id: str, revision: str | None) -> Path | None:
    folder = hub.cache_folder(hub_id)
    if not hub.is_cache_folder(folder):
        return None
    try:
        return hub.cached_snapshot(folder, revision)
    except ConfigError:
        return None


def _is_whole(folder: Path, variant: str | None) -> bool:
    """Return whether a snapshot holds what is read: a network without weights is one whose download goes on, or was cut."""
    if not (folder / INDEX_FILE).is_file():
        return (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))
    try:
        require_folder(folder)
        for part in listed_parts(read_index(folder)):
            if (folder / part / "config.json").is_file():
                require_weights(folder / part)
    except SafetyError:
        return False
    return variant is None or any(f".{variant}" in path.name for path in folder.glob("*/*.safetensors"))
