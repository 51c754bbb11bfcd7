"""A machine's local copy of an artifact: which of its files were verified, and a lock for those who fetch it."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import secrets
import time
from collections.abc import Container, Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster.store.manifest import MANIFEST, FileEntry, hash_file

logger = logging.getLogger(__name__)

PARTIAL = ".partial"
"""Suffix of a file that a process is fetching."""
ABANDONED_S = 3600.0
"""Age after which such a file is that of a process that was killed."""
NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)


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
        """Delete files of other names: those of an earlier making, and those that killed processes have left half fetched."""
        for path in self.folder.rglob("*"):
            name = path.relative_to(self.folder).as_posix()
            if path.is_file() and name not in names and name != MANIFEST and not _in_progress(path):
                path.unlink(missing_ok=True)

    def save(self) -> None:
        """Write the record, atomically; what another process wrote meanwhile is lost, and verified again.

        Where it cannot be written, as on a full disk, the files are verified again too.
        """
        partial = self.path.with_name(f"{self.path.name}.{secrets.token_hex(4)}{PARTIAL}")
        try:
            partial.write_text(json.dumps(self._known), encoding="utf-8")
            partial.replace(self.path)
        except OSError as error:
            logger.warning("%s cannot be written: %s", self.path, error)
            partial.unlink(missing_ok=True)


def _in_progress(path: Path) -> bool:
    """Return whether another process may be fetching a file."""
    if path.suffix != PARTIAL:
        return False
    try:
        return time.time() - path.stat().st_mtime < ABANDONED_S
    except FileNotFoundError:
        return True


def _stamp(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns]


@contextmanager
def fetching(folder: Path) -> Iterator[None]:
    """Let one process of this machine at a time fetch into ``folder``: the others then find the files there.

    On a file system without locks each fetches for itself, which is slower and no less safe.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f".{folder.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
        yield
