"""The manifest of an artifact: its files with sizes and hashes, and its provenance."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import re
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import Field, ValidationError, field_validator

from cluster.base import Config
from cluster.errors import CorruptArtifact, InvalidArtifactFolder
from cluster.hashing import config_hash

MANIFEST = "manifest.json"
LIBRARIES = ("ray", "torch", "diffusers", "transformers", "peft", "deepspeed")
UNSAFE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
PACKAGE = "_ray_pkg_"
DIGEST = "digest"
"""The entry of a stored manifest that holds the hash of all others."""


class FileEntry(Config):
    """One file's size in bytes and its SHA-256."""

    size: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Manifest(Config):
    """An artifact's files, config, parents and code version."""

    kind: str
    id: str
    files: dict[str, FileEntry]
    config: dict[str, Any]
    config_hash: str
    seed: int
    parents: tuple[str, ...] = ()
    code_version: str
    libraries: dict[str, str]
    created: datetime

    @field_validator("files")
    @classmethod
    def _safe_names(cls, files: dict[str, FileEntry]) -> dict[str, FileEntry]:
        for name in files:
            check_name(name)
        return files


def check_name(name: str) -> None:
    """Raise ValueError for a file that no artifact may have, by its path or its format."""
    path = PurePosixPath(name)
    plain = re.fullmatch(r"[A-Za-z0-9._ /-]+", name) is not None and str(path) == name != "."
    if not plain or path.is_absolute() or ".." in path.parts or name == MANIFEST:
        raise ValueError(f"unsafe file name {name!r}")
    if path.suffix.lower() in UNSAFE_SUFFIXES:
        raise ValueError(f"{name!r} is in a format that can run code when it is loaded")


def hash_bytes(data: bytes) -> FileEntry:
    """Return the size and SHA-256 of a file's content."""
    return FileEntry(size=len(data), sha256=hashlib.sha256(data).hexdigest())


def hash_file(path: Path) -> FileEntry:
    """Return a file's size and SHA-256, read in chunks."""
    with path.open("rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
        return FileEntry(size=handle.tell(), sha256=digest)


@functools.cache
def code_version() -> str:
    """Return the git commit of the working tree (with "+changes" when it is dirty), or the package's version."""
    root = Path(__file__).parent.parent.parent
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "--short=12", "HEAD"], cwd=root, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()
        changes = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"],
            cwd=root,
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        version = _version("safetydpo-ray")
        # A submitted job runs in a folder that Ray names by the hash of the code.
        return f"{version} in {root.name}" if root.name.startswith(PACKAGE) else version
    return f"{commit}+changes" if changes else commit


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def describe(
    kind: str,
    artifact_id: str,
    folder: Path,
    *,
    config: dict[str, Any],
    seed: int,
    parents: tuple[str, ...],
    stored: Mapping[str, FileEntry] | None = None,
) -> Manifest:
    """Return the manifest of a local folder's files (its own manifest aside), and of those that are stored already.

    Raises:
        InvalidArtifactFolder: there are no files, or one has a name or a format that a manifest may not name.
    """
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    files = {**(stored or {}), **{name: hash_file(folder / name) for name in names if name != MANIFEST}}
    field = f"{kind}/{artifact_id}"
    if not files:
        raise InvalidArtifactFolder(f"{folder} has no files to publish", field=field, fix="fill the folder first")
    try:
        return Manifest(
            kind=kind,
            id=artifact_id,
            files=files,
            config=config,
            config_hash=config_hash(config),
            seed=seed,
            parents=parents,
            code_version=code_version(),
            libraries={name: _version(name) for name in LIBRARIES},
            created=datetime.now(UTC),
        )
    except ValidationError as error:
        raise InvalidArtifactFolder(
            _first(error), field=field, fix="name files with A-Z a-z 0-9 . _ - and save safetensors, PNG, parquet, JSON"
        ) from None


def _first(error: ValidationError) -> str:
    return str(error.errors(include_url=False, include_input=False)[0]["msg"])


def dump_manifest(manifest: Manifest) -> bytes:
    """Return a manifest as it is stored: readable JSON that includes its own hash."""
    document = manifest.model_dump(mode="json")
    return _encode({**document, DIGEST: config_hash(document)})


def _encode(document: Any) -> bytes:
    return json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False).encode()


def parse_manifest(data: bytes, kind: str, artifact_id: str) -> Manifest:
    """Parse a manifest that ``dump_manifest`` wrote.

    Raises:
        CorruptArtifact: It is not a manifest, any of its bytes has changed, it names unsafe files, or it belongs to
            another artifact.
    """

    def corrupt(message: str) -> CorruptArtifact:
        return CorruptArtifact(message, field=f"{kind}/{artifact_id}", fix="run the stage that makes it again")

    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise corrupt(f"the manifest cannot be used: {error}") from None
    digest = document.pop(DIGEST, None) if isinstance(document, dict) else None
    try:
        manifest = Manifest.model_validate(document)
    except ValidationError as error:
        raise corrupt(f"the manifest cannot be used: {_first(error)}") from None
    if (manifest.kind, manifest.id) != (kind, artifact_id):
        raise corrupt(f"the manifest is that of {manifest.kind}/{manifest.id}")
    try:
        if config_hash(manifest.config) != manifest.config_hash:
            raise corrupt("the manifest's config does not match its hash")
        if digest != config_hash(document) or _encode({**document, DIGEST: digest}) != data:
            raise corrupt("the manifest does not match its own hash")
    except (ValueError, RecursionError) as error:  # NaN, or lists nested too deep to be written again
        raise corrupt(f"the manifest cannot be used: {error}") from None
    return manifest
