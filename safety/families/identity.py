"""What a model is, by its content: the same wherever it lies, whatever it is called and whichever device draws with it."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from pathlib import Path
from typing import Any

import torch
from pydantic import Field

from safety.base import Config
from safety.families.family import family_name
from safety.families.model_config import CACHE, ModelConfig
from safety.families.model_index import model_parts
from safety.families.source import model_folder
from safety.families.weight_files import INDEX_FILE, broken, part_files
from safety.precision import resolve_dtype

logger = logging.getLogger(__name__)

LARGE = 64 * 2**20
"""Bytes of a file from which on its hash is kept: some seconds a model instead of as many for each process of a run."""
BLOB = re.compile(r"[0-9a-f]{64}")


class ModelIdentity(Config):
    """A base model as artifacts name it: everything of it that their content depends on."""

    family: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="hash of the model's files, by ``model_hash``")
    dtype: str = Field(description="the numbers that the networks compute in, which changes results")
    quantize: str = Field(description="how the denoiser's layers are stored")


def model_identity(config: ModelConfig) -> ModelIdentity:
    """Return the identity of a configured model, which is fetched if need be; of the config only how its numbers are stored is part of it.

    Another VAE, another variant and what a single file predicts are in the hash, as files of the folder that is loaded.

    Raises:
        ConfigError: There is no such model, or no family takes it.
        ArtifactFormatError: One of its files is damaged.
    """
    family = family_name(config)
    dtype = str(resolve_dtype(config.dtype, torch.device(config.device))).removeprefix("torch.")
    return ModelIdentity(family=family, sha256=model_hash(model_folder(config)), dtype=dtype, quantize=config.quantize)


def model_hash(folder: Path) -> str:
    """Return the SHA-256 of a diffusers folder: of the names and contents of the files that are loaded from it.

    Others (cards, judges, the safety checker, pickles, other variants of the weights) do not count: they do not change
    the model's images.

    Raises:
        ConfigError: The folder holds no diffusers-format model.
        ArtifactFormatError: One of its files is damaged, or names a file outside the folder.
    """
    read = {path for part in model_parts(folder) for path in part_files(folder / part).read}
    files = sorted(path.relative_to(folder).as_posix() for path in read)
    digest = hashlib.sha256()
    for name in [INDEX_FILE, *files]:
        digest.update(f"{name}\x1f{content_hash(folder / name)}\n".encode())
    return digest.hexdigest()


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def content_hash(path: Path, kept: Path = CACHE / "hashes") -> str:
    """Return the SHA-256 of a model's file; that of a large one is kept until the file changes.

    Args:
        path: The file, or a link to it.
        kept: The folder where the hashes of large files are kept, each with its file's size, times and number.

    Raises:
        ArtifactFormatError: A hub's cache calls it by another SHA-256, so it was damaged since.
    """
    target = path.resolve()
    status = target.stat()
    if status.st_size < LARGE:
        return _checked(target, file_hash(target))
    stamp = [str(target), status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
    note = kept.expanduser() / f"{hashlib.sha256(str(target).encode()).hexdigest()[:32]}.json"
    if (known := _read_note(note, stamp)) is None:
        known = file_hash(target)
        _write_note(note, {"file": stamp, "sha256": known})
    return _checked(target, known)


def _read_note(note: Path, stamp: list[Any]) -> str | None:
    try:
        found = json.loads(note.read_bytes())
    except (OSError, ValueError):
        return None
    fits = isinstance(found, dict) and found.get("file") == stamp and BLOB.fullmatch(str(found.get("sha256")))
    return str(found["sha256"]) if fits else None


def _write_note(note: Path, content: dict[str, Any]) -> None:
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        partial = note.with_suffix(f".{hashlib.sha256(str(content).encode()).hexdigest()[:8]}.partial")
        partial.write_text(json.dumps(content), encoding="utf-8")
        partial.replace(note)
    except OSError as error:  # A home that cannot be written costs time, and no run.
        logger.debug("%s: the hash of a model's file is not kept (%s)", note, error)


def _checked(file: Path, found: str) -> str:
    """Return a file's hash; raise ArtifactFormatError where it is a blob of a hub's cache, named by another one."""
    if file.parent.name == "blobs" and BLOB.fullmatch(file.name) and file.name != found:
        raise broken(
            file, "its content is not what the hub's cache names it by", "delete it, and download the model again"
        )
    return found
