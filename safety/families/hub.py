"""Models of a hub: its cache on this machine, and downloads of just the files that are read."""

from __future__ import annotations

import re
from pathlib import Path

from safety.errors import ConfigError
from safety.families.selection import files_read
from safety.families.weight_files import INDEX_FILE
from safety.quiet import no_progress_bars

HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")
MAIN = "main"


def is_cache_folder(folder: Path) -> bool:
    """Return whether a folder is one repository of a hub's cache (``models--org--name``)."""
    return (folder / "snapshots").is_dir()


def cached_snapshot(folder: Path, revision: str | None) -> Path:
    """Return the snapshot of a revision in a repository's cache folder.

    Args:
        folder: The repository's folder, with ``snapshots`` and ``refs``.
        revision: A branch, tag or commit; None: "main", or the only snapshot.

    Raises:
        ConfigError: There is none, or several to choose from.
    """
    snapshots = sorted(path for path in (folder / "snapshots").iterdir() if path.is_dir())
    reference = folder / "refs" / (revision or MAIN)
    if reference.is_file():
        commit = reference.read_text(encoding="utf-8").strip()
        if (found := folder / "snapshots" / commit).is_dir():
            return found
    if revision is None and len(snapshots) == 1:
        return snapshots[0]
    if revision is not None:
        for path in snapshots:
            if len(revision) >= 7 and path.name.startswith(revision):
                return path
    known = ", ".join(path.name for path in snapshots[:3]) or "none"
    raise ConfigError(
        f"{folder} holds no snapshot of {revision or MAIN!r}",
        field="model.revision",
        fix=f"name one of its snapshots ({known}), or download the model again",
    )


def cache_folder(hub_id: str) -> Path:
    """Return the folder where the hub's cache on this machine keeps a model, whether it is there or not."""
    # Slow to import, and only for models of a hub.
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=hub_id, repo_type="model")


def download(hub_id: str, revision: str | None, variant: str | None) -> Path:
    """Download the files of a model that are read into the hub's cache, and return its snapshot folder.

    The hub's library locks each file, so processes of one machine fetch it once, and finishes what is cut.

    Raises:
        ConfigError: There is no such model or revision, it is not open to this user, or the hub cannot be reached.
        ArtifactFormatError: A part of it has no safetensors.
    """
    # Slow to import, and only for models of a hub.
    from huggingface_hub import HfApi, snapshot_download

    try:
        found = HfApi().model_info(hub_id, revision=revision)
        names = files_read([file.rfilename for file in found.siblings or ()], variant)
        with no_progress_bars():
            return Path(snapshot_download(hub_id, revision=found.sha, allow_patterns=names))
    except OSError as error:
        raise _refused(hub_id, revision, error) from error


def download_index(hub_id: str, revision: str | None) -> Path:
    """Download a model's ``model_index.json`` alone, and return the folder that holds it; raises as ``download`` does."""
    # Slow to import, and only for models of a hub.
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(hub_id, INDEX_FILE, revision=revision)).parent
    except OSError as error:
        raise _refused(hub_id, revision, error) from error


def _refused(hub_id: str, revision: str | None, error: OSError) -> ConfigError:
    """Return the error that says why a hub did not give a model."""
    from huggingface_hub.errors import (
        GatedRepoError,
        RemoteEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    known = {
        GatedRepoError: ("its licence must be accepted first", "accept it on the model's page, then set HF_TOKEN"),
        RepositoryNotFoundError: (
            "the hub knows no such model, or does not show it to you",
            "correct model.path, or set HF_TOKEN for a private one; a folder of that name is not here either",
        ),
        RemoteEntryNotFoundError: (
            f"it holds no {INDEX_FILE}, so it is no diffusers model",
            "name a model in diffusers' format; or download its single file, and name that",
        ),
        RevisionNotFoundError: (f"it has no revision {revision!r}", "correct model.revision"),
    }
    for kind, (why, fix) in known.items():
        if isinstance(error, kind):
            field = "model.revision" if kind is RevisionNotFoundError else "model.path"
            return ConfigError(f"{hub_id}: {why}", field=field, fix=fix)
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return ConfigError(
        f"{hub_id} is neither a folder here nor in the hub's cache, and the hub cannot be reached ({text[:200]})",
        field="model.path",
        fix="name a folder that exists; or download the model where there is a network ('hf download'), into the cache "
        "that HF_HOME names, on each machine that loads it",
    )
