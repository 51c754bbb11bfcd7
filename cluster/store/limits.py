"""The largest size of each kind of object: whoever may write to a store must not exhaust its readers' memory."""

from __future__ import annotations

import re
from typing import NamedTuple

from cluster.errors import CorruptArtifact

KIB, MIB, GIB = 2**10, 2**20, 2**30


class Limit(NamedTuple):
    """A kind of object, for people, and the most bytes that one may have."""

    kind: str
    size: int


LIMITS = (
    (re.compile(r"leases/.*"), Limit("a lease", 64 * KIB)),
    (re.compile(r"pointers/.*"), Limit("a pointer", 64 * KIB)),
    (re.compile(r"probe/.*"), Limit("a probe", 64 * KIB)),
    (re.compile(r"artifacts/[^/]*/[^/]*/manifest\.json"), Limit("a manifest", 32 * MIB)),
    # Evaluated images in figures, features and a few small PNGs; a dataset's group in figures alone.
    (re.compile(r"work/.*/groups/.*"), Limit("a group", GIB)),
    # Adapter and both moments in fp32: 1.1 GiB for a LoRA of rank 64 on all of SDXL's attention.
    (re.compile(r"work/.*/checkpoints/.*"), Limit("a checkpoint", 4 * GIB)),
    (re.compile(r"work/.*\.json"), Limit("a record", 16 * MIB)),
)
OTHER = Limit("an object of this kind", GIB)


def limit_of(key: str) -> Limit:
    """Return the limit of what is stored under a key."""
    return next((limit for pattern, limit in LIMITS if pattern.fullmatch(key)), OTHER)


def too_large(key: str, size: int | None, limit: Limit) -> CorruptArtifact:
    """Return the error for an object over its limit; ``size`` is None where the store does not say it."""
    found = "more bytes" if size is None else f"{size} bytes, more"
    return CorruptArtifact(
        f"it has {found} than {limit.kind} may have ({limit.size})",
        field=key,
        fix="find out who wrote it, and delete it: what the project made itself is made again",
    )
