"""The files of a source, and the hash of what they hold: part of a dataset's id, wherever they lie."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from safety.errors import ArtifactFormatError
from safety.families import identity


def files_in(folder: Path, suffixes: Sequence[str], field: str) -> tuple[Path, ...]:
    """Return the files below a folder that end in one of ``suffixes``, in lower case, sorted; of a file, itself.

    Raises:
        ArtifactFormatError: There is no such folder, or no such file in it.
    """
    if folder.is_file():
        return (folder,)
    found = tuple(sorted(path for path in folder.rglob("*") if path.suffix.lower() in suffixes and path.is_file()))
    if not found:
        what = f"no file that ends in {', '.join(suffixes)}" if folder.is_dir() else "no such folder"
        raise ArtifactFormatError(f"{folder}: {what}", field=field, fix="name the folder that holds them")
    return found


def content_hash(root: Path, files: Sequence[Path], field: str) -> str:
    """Return the SHA-256 of a file, or of several with their names, below ``root`` where they lie there; 64 hex digits.

    Raises:
        ArtifactFormatError: A file cannot be read.
    """
    if list(files) == [root]:
        return file_hash(root, field)
    digest = hashlib.sha256()
    for path in files:
        name = path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name
        digest.update(f"{name}\x1f{file_hash(path, field)}\n".encode())
    return digest.hexdigest()


def file_hash(path: Path, field: str) -> str:
    """Return the SHA-256 of a file, as 64 hex digits; raise ArtifactFormatError when it cannot be read."""
    try:
        state = path.stat()
        return _hash(path, state.st_size, state.st_mtime_ns)
    except OSError as error:
        raise unreadable(path, error, field) from None


# Each stage of a run asks for the hash of the same files, which may be gigabytes.
@lru_cache(maxsize=1 << 17)
def _hash(path: Path, _size: int, _modified: int) -> str:
    return identity.file_hash(path)


def unreadable(path: Path, error: OSError, field: str) -> ArtifactFormatError:
    """Return the error of a file that cannot be read."""
    return ArtifactFormatError(
        f"{path} cannot be read: {error.strerror or error}", field=field, fix="name a file that exists"
    )
