"""Objects as files of a local folder, under the contract of ``cluster.store.objects``, for one machine without a server.

A write fills a temporary file beside the objects and then links or renames it into place, so no reader and no listing sees
a part of it, and a writer that is killed leaves the old object. Compare-and-swap holds a lock file of the key's shard; the
operating system frees it when its holder dies. Paths are walked without following symbolic links.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import logging
import os
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from cluster.errors import CorruptArtifact, StoreRefused, StoreUnreachable, UnsafeStore
from cluster.store.config import StoreConfig
from cluster.store.folder_errors import ABSENT, explained, is_link
from cluster.store.limits import Limit, limit_of, too_large
from cluster.store.objects import LostRace, Versioned

logger = logging.getLogger(__name__)

OBJECTS, LOCKS, PARTIAL = "objects", "locks", "partial"
SHARDS = 64
CHUNK = 2**20
POLL_S = 0.002
ABANDONED_S = 3600.0
"""Age after which a temporary file is that of a writer that was killed."""
DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)
FORMER_SERVER = ("s3.json", "server.log")
"""Files that the S3 server, which earlier versions ran on this folder, left there."""
OTHER_FOLDER = "name in store.data_dir a folder of a local disk, or in store.endpoint an S3 store"


class FolderObjects:
    """The objects below one folder and prefix."""

    def __init__(self, config: StoreConfig) -> None:
        """Use ``config.data_dir``; it is created by ``check`` or the first write, for its owner alone."""
        self.config = config.absolute()

    @property
    def _root(self) -> Path:
        return self.config.data_dir

    def url(self, key: str = "") -> str:
        """Return the path of a key's file."""
        return str(self._root / OBJECTS / self.config.full_key(key))

    def _parts(self, path: str) -> list[str]:
        """Return the names that lead to an object's file; raise StoreRefused for a key that could leave the folder."""
        parts = path.split("/")
        if any(part in ("", ".", "..") or "\0" in part for part in parts) or not path.isprintable():
            raise StoreRefused(
                f"{path!r} is not a key", field="store", fix="use plain names between slashes, without '.' and '..'"
            )
        return parts

    def ensure_bucket(self) -> None:
        """Create the folder when it does not exist."""
        self.check()

    def check(self) -> None:
        """Raise the error that explains why the folder cannot be used; delete what killed writers left."""
        with explained(self._root):
            self._parts(self.config.full_key("key"))
            self._make_root()
            with self._temporary(lambda _: None):
                pass
            self._sweep()
        if any((self._root / name).exists() for name in FORMER_SERVER):
            logger.warning(
                "%s holds the data of the S3 server that earlier versions ran there. It is not read: finished stages run "
                "again. Delete the folder to free its space, or name another one in store.data_dir",
                self._root,
            )

    def _make_root(self) -> None:
        if not self._root.is_dir():
            self._root.parent.mkdir(parents=True, exist_ok=True)
            self._root.mkdir(mode=0o700, exist_ok=True)

    def _sweep(self) -> None:
        with self._directory([PARTIAL]) as directory:
            for name in () if directory is None else os.listdir(directory):  # noqa: PTH208 (of an open directory)
                with contextlib.suppress(FileNotFoundError):
                    age_s = time.time() - os.stat(name, dir_fd=directory, follow_symlinks=False).st_mtime
                    if age_s > ABANDONED_S:
                        os.unlink(name, dir_fd=directory)

    def clock_ahead_s(self) -> float:
        """Return the seconds by which the clock that dates files is ahead of this process's."""
        with explained(self._root):
            self._make_root()
            with self._temporary(lambda _: None) as (directory, name):
                return os.stat(name, dir_fd=directory).st_mtime - time.time()

    def read(self, key: str) -> bytes | None:
        """Return an object's bytes, or None when it does not exist."""
        found = self.read_versioned(key)
        return None if found is None else found.data

    def read_versioned(self, key: str) -> Versioned | None:
        """Return an object's bytes, ETag and age, or None when it does not exist."""
        with self._opened(key) as file:
            if file is None:
                return None
            status, limit = os.fstat(file.fileno()), limit_of(key)
            if status.st_size > limit.size:
                raise too_large(key, status.st_size, limit)
            data = file.read(status.st_size)
            return Versioned(data, _etag(data), max(0.0, time.time() - status.st_mtime))

    def write(self, key: str, data: bytes, *, if_absent: bool = False, if_match: str | None = None) -> None:
        """Write an object as a whole; raise LostRace when a condition does not hold."""
        self._put(key, lambda file: file.write(data), if_absent=if_absent, if_match=if_match)

    def upload(self, key: str, path: str) -> None:
        """Store a copy of a file as an object."""
        with Path(path).open("rb") as source:
            self._put(key, lambda file: shutil.copyfileobj(source, file, CHUNK))

    def _put(
        self, key: str, fill: Callable[[BinaryIO], object], *, if_absent: bool = False, if_match: str | None = None
    ) -> None:
        *folders, name = self._parts(self.config.full_key(key))
        with explained(self._root):
            self._make_root()
            with (
                self._temporary(fill) as (partials, temporary),
                self._directory([OBJECTS, *folders], make=True) as directory,
            ):
                assert directory is not None
                if if_absent:
                    _link(partials, temporary, directory, name)
                else:
                    with self._locked(key):
                        if if_match is not None and self._etag_of(directory, name) != if_match:
                            raise LostRace("it is another version, or was deleted")
                        os.replace(temporary, name, src_dir_fd=partials, dst_dir_fd=directory)
                os.fsync(directory)

    def _etag_of(self, directory: int, name: str) -> str | None:
        handle = _open_file(directory, name)
        if handle is None:
            return None
        with os.fdopen(handle, "rb") as file:
            return f'"{hashlib.file_digest(file, "sha256").hexdigest()}"'

    def download(self, key: str, path: str, limit: int | None = None) -> bool:
        """Copy an object to a file; return False when the object does not exist."""
        with self._opened(key) as source:
            if source is None:
                return False
            size = os.fstat(source.fileno()).st_size
            if limit is not None and size > limit:
                raise too_large(key, size, Limit("this file", limit))
            with Path(path).open("wb") as target:
                shutil.copyfileobj(source, target, CHUNK)
            return True

    def keys(self, prefix: str) -> list[str]:
        """Return the keys that begin with a prefix, sorted; links and temporary files are not among them."""
        return sorted(self.sizes(prefix))

    def sizes(self, prefix: str) -> dict[str, int]:
        """Return the sizes of the objects whose keys begin with a prefix, by key."""
        folder, _, start = self.config.full_key(prefix).rpartition("/")
        cut = len(self.config.full_key(""))
        with (
            explained(self._root),
            self._directory([OBJECTS, *(self._parts(folder) if folder else ())]) as directory,
        ):
            if directory is None:
                return {}
            above = f"{folder}/" if folder else ""
            return {(above + name)[cut:]: size for name, size in _files(directory, start)}

    def delete(self, key: str) -> None:
        """Delete an object; it is no error when it does not exist."""
        *folders, name = self._parts(self.config.full_key(key))
        with explained(self._root), self._directory([OBJECTS, *folders]) as directory:
            if directory is None:
                return
            with self._locked(key), contextlib.suppress(*ABSENT):
                os.unlink(name, dir_fd=directory)
            os.fsync(directory)

    @contextmanager
    def _opened(self, key: str) -> Iterator[BinaryIO | None]:
        """Open an object's file, or yield None when it does not exist."""
        *folders, name = self._parts(self.config.full_key(key))
        with explained(self._root), self._directory([OBJECTS, *folders]) as directory:
            handle = None if directory is None else _open_file(directory, name)
            if handle is None:
                yield None
                return
            with os.fdopen(handle, "rb") as file:
                yield file

    @contextmanager
    def _directory(self, names: Sequence[str], *, make: bool = False) -> Iterator[int | None]:
        """Open a directory below the root, one name after the other, without following a link.

        Args:
            names: The names that lead there.
            make: Create what is missing. Otherwise None is yielded.
        """
        handle = self._open_root()
        try:
            for name in names:
                below = None if handle is None else _open_directory(handle, name, make=make)
                if handle is not None:
                    os.close(handle)
                handle = below
            yield handle
        finally:
            if handle is not None:
                os.close(handle)

    def _open_root(self) -> int | None:
        try:
            # A link to the folder is the user's own; only those inside are not followed.
            return os.open(self._root, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            return None

    @contextmanager
    def _temporary(self, fill: Callable[[BinaryIO], object]) -> Iterator[tuple[int, str]]:
        """Yield the directory and the name of a filled temporary file, which is on the disk; it is gone afterwards."""
        name = f"{os.getpid()}-{secrets.token_hex(8)}"
        with self._directory([PARTIAL], make=True) as directory:
            assert directory is not None
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
            handle = os.open(name, flags, 0o600, dir_fd=directory)
            try:
                with os.fdopen(handle, "wb") as file:
                    fill(file)
                    file.flush()
                    os.fsync(handle)
                yield directory, name
            finally:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=directory)

    @contextmanager
    def _locked(self, key: str) -> Iterator[None]:
        """Keep other writers of a key out during the block."""
        shard = f"{int(hashlib.sha256(self.config.full_key(key).encode()).hexdigest(), 16) % SHARDS:02x}"
        with self._directory([LOCKS], make=True) as locks:
            handle = os.open(shard, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600, dir_fd=locks)
        try:
            self._take(handle, shard)
            yield
        finally:
            os.close(handle)  # frees the lock

    def _take(self, handle: int, shard: str) -> None:
        deadline = time.monotonic() + self.config.patience_s
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise StoreUnreachable(
                        f"another process has held {self._root / LOCKS / shard} for {self.config.patience_s:g} s",
                        field="store.data_dir",
                        fix="end that process, or let it go on (fuser shows which it is)",
                    ) from None
                time.sleep(POLL_S)
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise
                raise UnsafeStore(
                    f"the file system of {self._root} has no locks", field="store.data_dir", fix=OTHER_FOLDER
                ) from error


def _etag(data: bytes) -> str:
    return f'"{hashlib.sha256(data).hexdigest()}"'


def _link(source: int, temporary: str, directory: int, name: str) -> None:
    """Give a temporary file its name; raise LostRace when that is taken."""
    try:
        os.link(temporary, name, src_dir_fd=source, dst_dir_fd=directory, follow_symlinks=False)
    except FileExistsError:
        raise LostRace("it exists") from None
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        raise UnsafeStore(
            f"the file system has no hard links, by which an object is written once: {error.strerror}",
            field="store.data_dir",
            fix=OTHER_FOLDER,
        ) from error


def _open_directory(above: int, name: str, *, make: bool) -> int | None:
    try:
        return os.open(name, DIRECTORY, dir_fd=above)
    except FileNotFoundError:
        if not make:
            return None
    except NotADirectoryError:
        if is_link(above, name):
            raise _linked(name) from None
        if make:
            raise StoreRefused(
                f"{name!r} is an object, so no key may go on below it", field="store", fix="name the object otherwise"
            ) from None
        return None
    with contextlib.suppress(FileExistsError):
        os.mkdir(name, 0o700, dir_fd=above)
        os.fsync(above)
    return os.open(name, DIRECTORY, dir_fd=above)


def _open_file(directory: int, name: str) -> int | None:
    try:
        # Not blocking, as a named pipe would.
        handle = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=directory)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise _linked(name) from None
        raise
    mode = os.fstat(handle).st_mode
    if stat.S_ISREG(mode):
        return handle
    os.close(handle)
    if stat.S_ISDIR(mode):
        return None
    raise CorruptArtifact("it is no regular file", field=name, fix="remove it from store.data_dir")


def _linked(name: str) -> CorruptArtifact:
    return CorruptArtifact(
        "it is a symbolic link, and none is followed inside of the store",
        field=name,
        fix="replace it by what it links to",
    )


def _files(directory: int, start: str) -> Iterator[tuple[str, int]]:
    """Yield the paths and sizes of the regular files below a directory whose first name begins with ``start``."""

    def failed(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            raise error

    for place, folders, names, handle in os.fwalk(".", dir_fd=directory, onerror=failed):
        if place == ".":
            folders[:] = [name for name in folders if name.startswith(start)]
            names = [name for name in names if name.startswith(start)]
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                status = os.stat(name, dir_fd=handle, follow_symlinks=False)
                if stat.S_ISREG(status.st_mode):
                    yield f"{place}/{name}".removeprefix("./"), status.st_size
