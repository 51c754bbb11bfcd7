"""A lease on a run's id: a second live run with the same id is refused, and a dead run's lease is taken over."""

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
    """The process that holds a lease.

    Attributes:
        host: Name of its machine, for people.
        pid: Its process id on that machine.
        token: Random, so that two leases of one process differ.
        since: Time at which it took the lease, in Unix seconds.
        last_heartbeat: Time of its last heartbeat, in Unix seconds by its own clock.
        boot_id: The running system that its pid belongs to: two containers or machines may share a host name.
        process_started: Start time of its process, by that system's clock: pids are reused.
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
    """Return the id of the running system whose pids this process sees: its boot and its pid namespace."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return f"{socket.gethostname()}/{uuid.getnode():x}"


def _process_start(pid: int) -> str | None:
    """Return the start time of a process of this system ("" where it cannot be known), or None when it is gone."""
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
    """Return whether a holder may still run, ``age_s`` after its last heartbeat by the store's clock."""
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
        if holder == mine:  # the first try succeeded, and only its answer was lost
            return
    other = "another process" if holder is None else f"process {holder.pid} on {holder.host}"
    since = "" if holder is None else f" since {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(holder.since))}"
    raise RunLocked(
        f"{run!r} is running in {other}{since}",
        field="run.name",
        fix=f"wait for it, stop it, or give this run another name; a dead one loses its lease after {STALE_S:.0f} s",
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
    """Give the lease back; an unreachable store must not hide the error that ended the run."""
    try:
        found = store.read_versioned(_key(run))
        if found is not None and (holder := _read(found)) is not None and holder.token == mine.token:
            store.delete(_key(run))
    except ClusterError as error:
        logger.warning("the lease of run %s is not given back and becomes stale: %s", run, error)


@contextmanager
def lease(store: ObjectStore, run: str) -> Iterator[None]:
    """Hold the lease of a run's id.

    Another process takes it over when the holder's process has ended on the same running system or, elsewhere, when its
    last heartbeat is ``STALE_S`` seconds old. A holder that was suspended for so long finds its lease taken and logs
    that; the artifacts and pointers that both publish stay valid, since each has one winner.

    Raises:
        RunLocked: another live process holds it; the message names the process and the time.
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
