"""A checkpoint store in a local folder, where a test needs neither Ray nor S3."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

logger = logging.getLogger(__name__)


class FolderStore:
    """Objects as files of a local folder, each behind a line with a SHA-256 of its name and content."""

    def __init__(self, folder: Path) -> None:
        """Use ``folder``, made when it is not there."""
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def write(self, name: str, data: bytes) -> None:
        """Write a file atomically."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.partial")
        partial.write_bytes(_checksum(name, data) + b"\n" + data)
        partial.replace(path)

    def read(self, name: str) -> bytes | None:
        """Return what was written under the name, or None when it is missing or corrupt."""
        path = self.folder / name
        if not path.is_file():
            return None
        checksum, _, data = path.read_bytes().partition(b"\n")
        if checksum == _checksum(name, data):
            return data
        logger.warning("%s is corrupt and counts as missing", path)
        return None

    def names(self) -> list[str]:
        """Return the files' names, sorted."""
        return sorted(p.relative_to(self.folder).as_posix() for p in self.folder.rglob("*") if p.is_file())

    def delete(self, name: str) -> None:
        """Delete a file."""
        (self.folder / name).unlink(missing_ok=True)


def _checksum(name: str, data: bytes) -> bytes:
    return hashlib.sha256(name.encode() + b"\0" + data).hexdigest().encode()
