"""The contract of an object store: whole reads with a limit, atomic conditional writes, sorted listings.

``cluster.store.folder`` keeps it in a local folder, ``cluster.store.s3`` on an S3 endpoint.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from cluster.store.config import StoreConfig


class Versioned(NamedTuple):
    """An object's bytes, the ETag of this version, and its age in seconds by the store's clock."""

    data: bytes
    etag: str
    age_s: float


class LostRace(Exception):
    """A conditional write failed, since the object is not in the expected state."""


class Objects(Protocol):
    """Objects by key; it can be pickled, and works in the process that unpickles it."""

    @property
    def config(self) -> StoreConfig:
        """The store's config, with which another process opens the same store."""

    def url(self, key: str = "") -> str:
        """Return a key's address, for people."""

    def ensure_bucket(self) -> None:
        """Create what holds the objects, a bucket or a folder, when it does not exist."""

    def check(self) -> None:
        """Raise the error that explains why the store cannot be used; return when it can."""

    def clock_ahead_s(self) -> float:
        """Return the seconds by which the store's clock is ahead of this machine's, accurate to a second."""

    def read(self, key: str) -> bytes | None:
        """Return an object's bytes, or None when it does not exist; raises as ``read_versioned`` does."""

    def read_versioned(self, key: str) -> Versioned | None:
        """Return an object's bytes, ETag and age, or None when it does not exist.

        Raises:
            CorruptArtifact: It is larger than an object of its kind may be (``cluster.store.limits``).
        """

    def write(self, key: str, data: bytes, *, if_absent: bool = False, if_match: str | None = None) -> None:
        """Write an object as a whole; raise LostRace when a condition does not hold.

        Args:
            key: Its key.
            data: Its bytes. To learn which of several writers won, include a unique token and read it back.
            if_absent: Write only when there is no such object.
            if_match: Write only when the object has this ETag.
        """

    def upload(self, key: str, path: str) -> None:
        """Store a copy of a file as an object."""

    def download(self, key: str, path: str, limit: int | None = None) -> bool:
        """Copy an object to a file; return False, and leave no file, when the object does not exist.

        Args:
            key: Its key.
            path: The file; what it holds is replaced.
            limit: The most bytes that it may have; None: any number.

        Raises:
            CorruptArtifact: It is larger.
        """

    def keys(self, prefix: str) -> list[str]:
        """Return the keys that begin with a prefix, sorted."""

    def sizes(self, prefix: str) -> dict[str, int]:
        """Return the sizes in bytes of the objects whose keys begin with a prefix, by key, without reading one."""

    def delete(self, key: str) -> None:
        """Delete an object; it is no error when it does not exist."""
