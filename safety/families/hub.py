"""Models of a hub: its cache on this machine, and downloads of just the files that are read."""

from __future__ import annotations

import errno
import re
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from safety.errors import ConfigError, SafetyError
from safety.families.selection import files_read
from safety.families.weight_files import INDEX_FILE, listed_parts, read_index
from safety.quiet import no_progress_bars

HUB_ID = re.compile(
    r"(?!.*(?:--|\.\.|\.git$))"
    r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?/[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?"
)
"""An id as the hub's library takes it; it raises for others."""
MAIN = "main"
ASK_TIMEOUT_S = 10.0
"""The longest wait until the hub answers at all. Its own library tries six times over, for a minute in all."""
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)


def is_cache_folder(folder: Path) -> bool:
    """Return whether a folder is one repository of a hub's cache (``models--org--name``), and no model with snapshots."""
    return (folder / "snapshots").is_dir() and not (folder / INDEX_FILE).is_file()


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

    The hub's library locks each file, so processes of one machine fetch it once, and finishes what is cut. Weights come
    last: a snapshot that holds them all is whole, whenever a download ended.

    Raises:
        ConfigError: There is no such model or revision, it is not open to this user, or the hub cannot be reached.
        ArtifactFormatError: A part of it has no safetensors.
    """
    # Slow to import, and only for models of a hub.
    from huggingface_hub import HfApi, snapshot_download

    with _explained(hub_id, revision), no_progress_bars():
        _require_answer()
        found = HfApi().model_info(hub_id, revision=revision)
        names = [file.rfilename for file in found.siblings or ()]
        listed = listed_parts(read_index(download_index(hub_id, found.sha))) if INDEX_FILE in names else None
        read = files_read(names, variant, listed)
        if not read:
            raise ConfigError(
                f"none of the {len(names)} files of {hub_id} is read",
                field="model.path",
                fix=f"name a repository with {INDEX_FILE}, or as model.vae one with config.json; or download its single file",
            )
        settings = [name for name in read if not name.endswith(".safetensors")]
        for some in (settings, read):
            folder = Path(snapshot_download(hub_id, revision=found.sha, allow_patterns=some))
        _note_revision(folder, revision or MAIN)
    return folder


def fetch_files(hub_id: str, revision: str | None, patterns: Sequence[str], field: str) -> Path:
    """Return the snapshot with a repository's files of some patterns: downloaded, or from the cache where there is no network.

    Args:
        hub_id: The repository.
        revision: A branch, tag or commit; None: "main".
        patterns: Of the names that are wanted, such as ``*.safetensors``.
        field: The setting that errors name.

    Raises:
        ConfigError: There is none, it is not open to this user, or the hub cannot be reached and the cache has none.
    """
    # Slow to import, and only for models of a hub.
    import httpx
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        with _explained(hub_id, revision), no_progress_bars():
            try:
                _require_answer()
            except httpx.TransportError as error:
                try:
                    return Path(snapshot_download(hub_id, revision=revision, local_files_only=True))
                except LocalEntryNotFoundError:
                    raise error from None
            return Path(snapshot_download(hub_id, revision=revision, allow_patterns=list(patterns)))
    except ConfigError as error:
        fix = error.fix.replace("model.path", field).replace("model.revision", "its revision")
        raise ConfigError(error.message, field=field, fix=fix) from error


def download_index(hub_id: str, revision: str | None) -> Path:
    """Download a model's ``model_index.json`` alone, and return the folder that holds it; raises as ``download`` does."""
    # Slow to import, and only for models of a hub.
    from huggingface_hub import hf_hub_download

    with _explained(hub_id, revision):
        _require_answer()
        return Path(hf_hub_download(hub_id, INDEX_FILE, revision=revision)).parent


def is_known(hub_id: str) -> bool | None:
    """Return whether the hub has a model, open to this user or not; None where it cannot be asked."""
    # Slow to import, and only for models of a hub.
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        _require_answer()
        HfApi().model_info(hub_id, timeout=ASK_TIMEOUT_S)
    except GatedRepoError:
        return True
    except RepositoryNotFoundError:
        return False
    except Exception:  # Its HTTP library adds its own errors.
        return None
    return True


def is_offline() -> bool:
    """Return whether this process is told to ask no hub (``HF_HUB_OFFLINE``)."""
    # Slow to import, and only for models of a hub.
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _require_answer() -> None:
    """Raise what the HTTP library raises where the hub does not answer, after one more try and not after six."""
    # Slow to import, and only for models of a hub.
    import httpx
    from huggingface_hub import constants

    if is_offline():
        return
    for again in (True, False):
        try:
            httpx.head(constants.ENDPOINT, timeout=ASK_TIMEOUT_S)
        except httpx.TransportError:
            if not again:
                raise
            time.sleep(0.5)
        else:
            return


def _note_revision(snapshot: Path, revision: str) -> None:
    """Write down of which commit a branch or tag is, as the hub's library does, so that it is found without a network."""
    reference = snapshot.parents[1] / "refs" / revision
    if revision != snapshot.name and not (reference.is_file() and reference.read_text() == snapshot.name):
        reference.parent.mkdir(parents=True, exist_ok=True)
        partial = reference.with_name(f"{reference.name}.{secrets.token_hex(4)}.tmp")
        partial.write_text(snapshot.name, encoding="utf-8")
        partial.replace(reference)


@contextmanager
def _explained(hub_id: str, revision: str | None) -> Iterator[None]:
    """Turn what the hub's library raises, of which its HTTP and transfer libraries add their own, into one known error."""
    try:
        yield
    except SafetyError:
        raise
    except Exception as error:
        raise _refused(hub_id, revision, error) from error


def _refused(hub_id: str, revision: str | None, error: Exception) -> ConfigError:
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
    if isinstance(error, OSError) and error.errno in UNWRITABLE:
        return ConfigError(
            f"{hub_id} cannot be written into the hub's cache ({text[:200]})",
            field="model.path",
            fix="free some space, or name another folder as the hub's cache (HF_HOME)",
        )
    return ConfigError(
        f"{hub_id} is neither a folder here nor in the hub's cache, and the hub cannot be reached ({text[:200]})",
        field="model.path",
        fix="name a folder that exists; or download the model where there is a network ('hf download'), into the cache "
        "that HF_HOME names, on each machine that loads it",
    )
