"""Errors of a store in a local folder, with their cause and the setting that helps."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster.errors import StoreFull, StoreRefused

ABSENT = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
FULL = (errno.ENOSPC, errno.EDQUOT)
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


def is_link(directory: int, name: str) -> bool:
    """Return whether a name in an open directory is a symbolic link."""
    try:
        return stat.S_ISLNK(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return False


@contextmanager
def explained(root: Path) -> Iterator[None]:
    """Raise an error of the operating system in the block as the store's own, with the setting to change.

    Raises:
        StoreFull: The disk, or the user's quota, is full.
        StoreRefused: Anything else.
    """
    try:
        yield
    except OSError as error:
        what = f"{root}: {error.strerror}" + ("" if error.filename is None else f" ({error.filename})")
        if error.errno in FULL:
            raise StoreFull(
                f"there is no room: {what}", field="store.data_dir", fix="free some space, or name another folder"
            ) from error
        fix = "name a folder that this user may write to"
        if error.errno not in FORBIDDEN:
            fix = "name another folder, or mend this one's file system"
        raise StoreRefused(what, field="store.data_dir", fix=fix) from error
