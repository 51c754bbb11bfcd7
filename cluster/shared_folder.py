"""Proof that every node of a cluster sees one local folder: a store without an endpoint needs that."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.errors import ClusterError
from cluster.store.artifacts import ArtifactStore
from cluster.store.config import StoreConfig

ANSWER_S = 60.0
"""The longest wait for the nodes, which start a process each."""
FIX = "name in store.endpoint an S3 store that every node reaches, or in store.data_dir a folder that all of them share"


@contextmanager
def marked(store: ArtifactStore) -> Iterator[str]:
    """Keep an object in the store during the block and yield its key, for ``error_at_node``."""
    key = f"probe/{secrets.token_hex(8)}"
    store.write(key, key.encode())
    try:
        yield key
    finally:
        for left in store.keys(key):
            store.delete(left)


def error_at_node(store: StoreConfig, mark: str) -> str | None:
    """Return why a process of this node cannot use the folder in which the driver left a mark, or None.

    The process reads the mark and, as the run's actors do, writes beside it.
    """
    found = ArtifactStore(store)
    try:
        if found.read(mark) != mark.encode():
            return f"store.data_dir: {store.data_dir} is another folder there than on the driver's machine. Fix: {FIX}"
        found.write(f"{mark}-{secrets.token_hex(4)}", b"")
    except ClusterError as error:
        return str(error)
    return None


def require_shared_folder(store: ArtifactStore) -> None:
    """Raise ClusterError unless every node of the connected cluster uses this store's folder; S3 needs no proof.

    Raises:
        ClusterError: A node does not, or does not answer.
    """
    if store.config.endpoint is not None:
        return
    task = ray.remote(num_cpus=0, max_retries=0)(error_at_node)
    nodes = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    with marked(store) as mark:
        asked = {
            task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(
                store.config, mark
            ): address
            for node, address in nodes.items()
        }
        _, silent = ray.wait(list(asked), num_returns=len(asked), timeout=ANSWER_S)
        for reference, address in asked.items():
            if reference in silent:
                why: str | None = f"it does not answer in {ANSWER_S:g} s"
            else:
                why = _answer(reference)
            if why is not None:
                raise ClusterError(
                    f"without it the store is the folder {store.config.data_dir}, and node {address} cannot use it: {why}",
                    field="store.endpoint",
                    fix=FIX,
                )


def _answer(reference: ray.ObjectRef[str | None]) -> str | None:
    try:
        found: str | None = ray.get(reference)
    except ray.exceptions.RayError as error:
        return " ".join(str(error).split())[-300:]
    return found
