"""A lease on a run's id: a second live run of one id is refused, a dead one's lease is taken over."""

from __future__ import annotations

import functools
import json
import logging
import os
import secrets
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from cluster.errors import ClusterError, RunLocked
from cluster.hashing import canonical_json
from cluster.store.objects import LostRace, ObjectStore, Versioned

logger = logging.getLogger(__name__)

HEARTBEAT_S = 15.0
STALE_S = 90.0


class Holder(NamedTuple):
    """Who holds a lease.

    Attributes:
        host: Its machine's name, to be read by people.
        pid: Its process on that machine.
        token: Its own, so that two leases of one process differ.
        since: When it took the lease, in Unix seconds.
        beat: When it last gave a sign of life, in Unix seconds by its own clock.
        place: Which running system its pid belongs to: two containers or machines may share a host name.
        born: When its process started, by that system's clock: a pid is used again.
    """

    host: str
    pid: int
    token: str
    since: float
    last_heartbeat: float
    boot_id: str
    process_started: str


@functools.cache
def _boot_id() -> str:
    """Return what names the running system whose pids this process sees: its boot and its pid namespace."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return f"{socket.gethostname()}/{uuid.getnode():x}"


def _process_start(pid: int) -> str | None:
    """Return when a process of this system started ("" where that cannot be known), or None when it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
    except OSError:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return None
        except PermissionError:
            pass
        return ""


def _key(run: str) -> str:
    return f"leases/{run}.json"


def _read(found: Versioned) -> Holder | None:
    try:
        return Holder(**json.loads(found.data))
    except (ValueError, TypeError):
        return None


def _alive(holder: Holder, age_s: float) -> bool:
    """Say whether a holder may be at work, ``age_s`` after its last sign of life by the store's clock."""
    if holder.boot_id == _boot_id():
        process_started = _process_start(holder.pid)
        if process_started is None or process_started != holder.process_started:
            return False
    return age_s < STALE_S


def _acquire(store: ObjectStore, run: str, mine: Holder) -> None:
    found = store.read_versioned(_key(run))
    data = canonical_json(mine._asdict())
    try:
        if found is None:
            store.write(_key(run), data, if_absent=True)
            return
        holder = _read(found)
        if holder is None or not _alive(holder, found.age_s):
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
        fix=f"wait for it, stop it, or give this run another name; a dead one lets go after {STALE_S:.0f} s",
    )


def _beat(store: ObjectStore, run: str, mine: Holder, stop: threading.Event) -> None:
    while not stop.wait(HEARTBEAT_S):
        try:
            found = store.read_versioned(_key(run))
            if found is None or (holder := _read(found)) is None or holder.token != mine.token:
                logger.warning("the lease of run %s was taken over", run)
                return
            store.write(
                _key(run), canonical_json(mine._replace(last_heartbeat=time.time())._asdict()), if_match=found.etag
            )
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

    It goes to another when its process is gone from the same running system, or, elsewhere, when it gave no sign of
    life for ``STALE_S`` seconds. A holder that slept so long finds its lease taken and says so in the log; what both
    publish is safe, since artifacts and pointers have one winner.

    Raises:
        RunLocked: another live process holds it; the message says which and since when.
    """
    now = time.time()
    pid = os.getpid()
    mine = Holder(socket.gethostname(), pid, secrets.token_hex(8), now, now, _boot_id(), _process_start(pid) or "")
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
