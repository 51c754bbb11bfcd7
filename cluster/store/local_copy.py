"""A machine's local copy of an artifact: which of its files were verified, and a lock for those who fetch it."""

from __future__ import annotations

import fcntl
import json
import secrets
from collections.abc import Container, Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster.store.manifest import MANIFEST, FileEntry, hash_file

PARTIAL = ".partial"
"""Suffix of a file that another process is fetching."""


class VerifiedFiles:
    """The files of one folder whose content was verified on this machine, in a small file beside the folder.

    A file is known by its size, inode and both times, of which nobody sets the second by hand, so that a copy that
    several processes use is read for its hash once. Whatever is wrong with the record costs another reading.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder.with_name(f".{folder.name}.verified.json")
        self._known = self._read()

    def _read(self) -> dict[str, list[object]]:
        try:
            found = json.loads(self.path.read_bytes())
        except (OSError, ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}

    def holds(self, name: str, entry: FileEntry) -> bool:
        """Return whether the folder's file is the manifest's; it is read only when it may have changed."""
        path = self.folder / name
        if not path.is_file():
            return False
        if self._known.get(name) == [*_stamp(path), entry.sha256]:
            return True
        if path.stat().st_size != entry.size or hash_file(path) != entry:
            return False
        self.note(name, entry)
        return True

    def note(self, name: str, entry: FileEntry) -> None:
        """Remember a file that was just verified."""
        self._known[name] = [*_stamp(self.folder / name), entry.sha256]

    def drop_others(self, names: Container[str]) -> None:
        """Delete the folder's files that have other names: an artifact that was made again may lack some."""
        for path in self.folder.rglob("*"):
            name = path.relative_to(self.folder).as_posix()
            if path.is_file() and name not in names and name != MANIFEST and path.suffix != PARTIAL:
                path.unlink()

    def save(self) -> None:
        """Write the record, atomically; what another process wrote meanwhile is lost, and verified again."""
        partial = self.path.with_name(f"{self.path.name}.{secrets.token_hex(4)}.partial")
        partial.write_text(json.dumps(self._known), encoding="utf-8")
        partial.replace(self.path)


def _stamp(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns]


@contextmanager
def fetching(folder: Path) -> Iterator[None]:
    """Let one process of this machine at a time fetch into ``folder``: the others then find the files there."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f".{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
