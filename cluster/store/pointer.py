"""Named pointers to releases, moved by compare-and-swap."""

from __future__ import annotations

import json
import secrets

from cluster.errors import CorruptArtifact, PointerMoved
from cluster.hashing import canonical_json
from cluster.store.objects import LostRace, Objects


def _key(name: str) -> str:
    return f"pointers/{name}.json"


def _target(data: bytes, name: str) -> str:
    fix = f"delete the object {_key(name)} and publish the release again"
    try:
        document = json.loads(data)
        target = str(document["target"])
        own = document.get("name", name)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise CorruptArtifact("it is not a pointer", field=f"pointer {name}", fix=fix) from None
    if own != name:
        raise CorruptArtifact(f"it is the pointer {own!r}", field=f"pointer {name}", fix=fix)
    return target


def read_pointer(store: Objects, name: str) -> str | None:
    """Return the target of a pointer, or None when there is no such pointer."""
    data = store.read(_key(name))
    return None if data is None else _target(data, name)


def swap_pointer(store: Objects, name: str, expected: str | None, target: str) -> None:
    """Move a pointer from ``expected`` (None: it must not exist) to ``target``.

    Raises:
        PointerMoved: the pointer names something else; nothing was changed.
        CorruptArtifact: the object is not this pointer.
    """
    # The token distinguishes this move from another process's move to the same target, when the write's answer is lost.
    data = canonical_json({"name": name, "target": target, "token": secrets.token_hex(8)})
    found = store.read_versioned(_key(name))
    current = None if found is None else _target(found.data, name)
    try:
        if current != expected:
            raise LostRace(name)
        if found is None:
            store.write(_key(name), data, if_absent=True)
        else:
            store.write(_key(name), data, if_match=found.etag)
    except LostRace:
        now = store.read(_key(name))
        if now == data:
            return
        raise PointerMoved(
            f"it names {None if now is None else _target(now, name)!r}, not {expected!r}",
            field=f"pointer {name}",
            fix="read it again and decide whether your release should still replace it",
        ) from None
