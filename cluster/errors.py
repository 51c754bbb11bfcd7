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
+-- AlreadyPublished     another publisher won with other content
+-- PointerMoved         a pointer names something unexpected
+-- RunLocked            another live process holds the run's id
+-- LeaseLost            another process has taken the run's id over, or its lease was deleted
+-- ImpossibleResources  the cluster can never satisfy a request
+-- ClusterUnreachable   no Ray cluster answers in time
+-- WrongToken           the Ray cluster refuses the user's token
"""

from __future__ import annotations


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
