"""Errors of the cluster and the store that a user can fix: each names the field and the fix.

ClusterError
+-- StoreUnreachable     nothing answers at the endpoint in time
+-- WrongCredentials     the store refuses the key or its signature
+-- MissingBucket        the bucket does not exist
+-- StoreFull            the store has no room: a disk or a quota is full
+-- StoreRefused         the store answers with an error of another kind
+-- UnsafeStore          the store does not honour conditional writes
+-- InvalidArtifactFolder  a folder cannot be published
+-- CorruptArtifact      a file does not match its manifest
+-- UntrustedArtifact    no trusted key has signed an artifact
+-- WrongKey             a file does not hold the key that it should
+-- AlreadyPublished     another publisher won with other content
+-- PointerMoved         a pointer names something unexpected
+-- RunLocked            another live process holds the run's id
+-- LeaseLost            another process has taken the run's id over, or its lease was deleted
+-- ImpossibleResources  the cluster can never satisfy a request
+-- ClusterUnreachable   no Ray cluster answers in time
+-- WrongToken           the Ray cluster refuses the user's token
+-- UnusablePath         this machine refuses to read or write a file
"""

from __future__ import annotations

import errno

EXIT_USER_ERROR = 2
"""The exit code of a command that ends with an error whose cause is known and named; Python's own for any other is 1."""


class ClusterError(Exception):
    """A fault with a known cause: ``field`` names the setting or object at fault, ``fix`` the remedy."""

    def __init__(self, message: str, *, field: str, fix: str) -> None:
        """Compose "field: message. Fix: fix"."""
        super().__init__(f"{field}: {message}. Fix: {fix}")
        self.message, self.field, self.fix = message, field, fix

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle by the parts, so that the error crosses process borders whole."""
        return _rebuild, (type(self), self.message, self.field, self.fix)


def _rebuild(kind: type[ClusterError], message: str, field: str, fix: str) -> ClusterError:
    return kind(message, field=field, fix=fix)


class StoreUnreachable(ClusterError):
    """Nothing answers at the store's endpoint in time."""


class WrongCredentials(ClusterError):
    """The store refuses the key or its signature."""


class MissingBucket(ClusterError):
    """The bucket does not exist."""


class StoreFull(ClusterError):
    """The store has no room for what is written: its disk or a quota is full."""


class StoreRefused(ClusterError):
    """The store answers with an error of another kind; its code is in the message."""


class UnsafeStore(ClusterError):
    """The store ignores the condition of a write and overwrites, so publishing would not be atomic."""


class InvalidArtifactFolder(ClusterError):
    """A folder cannot be published: it is empty, or holds a file whose name or format is not allowed."""


class CorruptArtifact(ClusterError):
    """A file does not match its manifest, or the manifest itself is invalid."""


class UntrustedArtifact(ClusterError):
    """No trusted key has signed an artifact: it may be whole, and anybody's who may write to the store."""


class WrongKey(ClusterError):
    """A file does not hold the signing key, or the public key, that a setting names it for."""


class AlreadyPublished(ClusterError):
    """Another publisher won with other content under the same id."""


class PointerMoved(ClusterError):
    """A pointer does not name the expected release: another process moved it."""


class RunLocked(ClusterError):
    """Another live process holds the run's id."""


class LeaseLost(ClusterError):
    """The run's lease is another process's by now, or was deleted."""


class ImpossibleResources(ClusterError):
    """The cluster can never satisfy a request for resources."""


class ClusterUnreachable(ClusterError):
    """No Ray cluster answers in time."""


class WrongToken(ClusterError):
    """The Ray cluster refuses the user's token, or there is none to send."""


class UnusablePath(ClusterError):
    """A file that this machine refuses to read or write: its mode, a read-only file system, a full disk, a quota."""


PATH_FIXES = {
    **dict.fromkeys(
        (errno.EACCES, errno.EPERM, errno.EROFS),
        "open it to this user, or point the setting that names it (run.output, TMPDIR, ...) to a folder of yours",
    ),
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "free some space, then run it again to go on"),
}
"""Errors of the operating system that are the user's to fix, and how."""


def unusable_path(error: BaseException) -> UnusablePath | None:
    """Return an operating system's error as a known one, or None when it is of another kind."""
    if not isinstance(error, OSError) or error.errno not in PATH_FIXES:
        return None
    return UnusablePath(str(error.strerror), field=str(error.filename or "a file"), fix=PATH_FIXES[error.errno])
