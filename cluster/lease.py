"""A lease on a run's id: a second live run of one id is refused, a dead one's lease is taken over."""

from __future__ import annotations

import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from cluster.canonical import canonical_json
from cluster.errors import ClusterError, RunLocked
from cluster.store.objects import LostRace, ObjectStore, Versioned

logger = logging.getLogger(__name__)

HEARTBEAT_S = 15.0
STALE_S = 90.0


class Holder(NamedTuple):
    """Who holds a lease: host and process, since when, and when it last gave a sign of life (Unix seconds)."""

    host: str
    pid: int
    token: str
    since: float
    beat: float


def _key(run: str) -> str:
    return f"leases/{run}.json"


def _read(found: Versioned) -> Holder | None:
    try:
        return Holder(**json.loads(found.data))
    except (ValueError, TypeError):
        return None


def _alive(holder: Holder, now: float) -> bool:
    """Say whether a holder may still be at work: its process on this host, or its heartbeat on another."""
    if holder.host == socket.gethostname():
        try:
            os.kill(holder.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:  # another user's process, perhaps under a number used again: the heartbeat tells
            pass
    return now - holder.beat < STALE_S


def _acquire(store: ObjectStore, run: str, mine: Holder) -> None:
    found = store.read_versioned(_key(run))
    data = canonical_json(mine._asdict())
    try:
        if found is None:
            store.write(_key(run), data, if_absent=True)
            return
        holder = _read(found)
        if holder is None or not _alive(holder, time.time()):
            store.write(_key(run), data, if_match=found.etag)
            return
    except LostRace:
        found = store.read_versioned(_key(run))
        holder = None if found is None else _read(found)
        if holder == mine:  # the first try had been heard, and only its answer was lost
            return
    who = "another process" if holder is None else f"process {holder.pid} on {holder.host}"
    since = "" if holder is None else f" since {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(holder.since))}"
    raise RunLocked(
        f"{run!r} is running in {who}{since}",
        field="run.name",
        fix="wait for it, stop it, or give this run another name",
    )


def _beat(store: ObjectStore, run: str, mine: Holder, stop: threading.Event) -> None:
    while not stop.wait(HEARTBEAT_S):
        try:
            found = store.read_versioned(_key(run))
            if found is None or (holder := _read(found)) is None or holder.token != mine.token:
                logger.warning("the lease of run %s was taken over", run)
                return
            store.write(_key(run), canonical_json(mine._replace(beat=time.time())._asdict()), if_match=found.etag)
        except (ClusterError, LostRace) as error:
            logger.warning("no heartbeat for run %s: %s", run, error)


def _release(store: ObjectStore, run: str, mine: Holder) -> None:
    """Give the lease back; a store that is gone by now must not hide the error that ended the run."""
    try:
        found = store.read_versioned(_key(run))
        if found is not None and (holder := _read(found)) is not None and holder.token == mine.token:
            store.delete(_key(run))
    except ClusterError as error:
        logger.warning("the lease of run %s is not given back and goes stale: %s", run, error)


@contextmanager
def lease(store: ObjectStore, run: str) -> Iterator[None]:
    """Hold the lease of a run's id.

    Raises:
        RunLocked: another live process holds it; the message says which and since when.
    """
    now = time.time()
    mine = Holder(socket.gethostname(), os.getpid(), secrets.token_hex(8), now, now)
    _acquire(store, run, mine)
    stop = threading.Event()
    thread = threading.Thread(target=_beat, args=(store, run, mine, stop), daemon=True, name=f"lease-{run}")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=5)
        _release(store, run, mine)
