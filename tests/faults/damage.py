"""Random damage to objects of a store, as disks, networks and hands do it."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from cluster.store.objects import Objects

Damage = Callable[[Objects, Sequence[str], random.Random], str]


def truncate(store: Objects, keys: Sequence[str], draw: random.Random) -> str:
    """Cut an object's end off, at least a byte of it and not all."""
    key = draw.choice([key for key in keys if len(read(store, key)) > 1])
    data = read(store, key)
    cut = draw.randrange(1, len(data))
    store.write(key, data[:cut])
    return f"{key} cut to {cut} of {len(data)} bytes"


def flip(store: Objects, keys: Sequence[str], draw: random.Random) -> str:
    """Turn one bit over."""
    key = draw.choice([key for key in keys if read(store, key)])
    data = bytearray(read(store, key))
    bit = draw.randrange(8 * len(data))
    data[bit // 8] ^= 1 << bit % 8
    store.write(key, bytes(data))
    return f"{key} with bit {bit} turned over"


def delete(store: Objects, keys: Sequence[str], draw: random.Random) -> str:
    """Take an object away."""
    key = draw.choice(list(keys))
    store.delete(key)
    return f"{key} deleted"


def swap(store: Objects, keys: Sequence[str], draw: random.Random) -> str:
    """Let two objects of different content change places."""
    one = draw.choice(list(keys))
    other = draw.choice([key for key in keys if read(store, key) != read(store, one)])
    first, second = read(store, one), read(store, other)
    store.write(one, second)
    store.write(other, first)
    return f"{one} and {other} in each other's place"


def empty(store: Objects, keys: Sequence[str], draw: random.Random) -> str:
    """Leave nothing of an object but its name."""
    key = draw.choice([key for key in keys if read(store, key)])
    store.write(key, b"")
    return f"{key} emptied"


KINDS: tuple[Damage, ...] = (truncate, flip, delete, swap, empty)


def read(store: Objects, key: str) -> bytes:
    """Return an object that is there."""
    data = store.read(key)
    assert data is not None, key
    return data
