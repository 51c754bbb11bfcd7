"""The checks of a store."""

from __future__ import annotations

from cluster.preflight.check import Finding, passed
from cluster.store.artifacts import ArtifactStore


def check_store(store: ArtifactStore) -> Finding:
    """Say where the store is; raise the error that explains why it cannot be used, if it cannot."""
    store.check()
    return passed(store.url())


def check_conditional_writes(store: ArtifactStore) -> Finding:
    """Raise UnsafeStore when the store overwrites where a write's condition does not hold."""
    store.probe_conditional_writes()
    return passed("If-None-Match and If-Match are honoured")
