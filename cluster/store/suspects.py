"""Notes of files that did not verify where they were used.

A stage's start asks the store for the sizes of an artifact's files and reads none, so it would take a file of the right size
and the wrong content for whole at every start. Whoever fetches such a file leaves a note, and the next start reads that file.
"""

from __future__ import annotations

import hashlib
import logging

from cluster.errors import ClusterError
from cluster.store.checksummed import write_checksummed
from cluster.store.objects import Objects

logger = logging.getLogger(__name__)


def suspects_prefix(kind: str, artifact_id: str) -> str:
    """Return the prefix of the notes on an artifact's files."""
    return f"work/suspects/{kind}/{artifact_id}/"


def note_suspect(store: Objects, kind: str, artifact_id: str, name: str) -> None:
    """Note a file; who may only read the store, as an endpoint may, cannot, and says so in the log."""
    key = f"{suspects_prefix(kind, artifact_id)}{hashlib.sha256(name.encode()).hexdigest()[:16]}"
    try:
        write_checksummed(store, key, name.encode())
    except ClusterError as error:
        logger.warning("%s/%s/%s did not verify, and that cannot be noted: %s", kind, artifact_id, name, error)
