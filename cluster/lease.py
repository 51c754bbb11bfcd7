"""A lease on a run's id: a second live run is refused, a dead run's lease is taken over, and its run stops if it lives."""

from __future__ import annotations

import functools
import logging
import os
import secrets
import signal
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated, NamedTuple

from pydantic import Field, TypeAdapter, ValidationError

from cluster.errors import ClusterError, CorruptArtifact, LeaseLost, RunLocked
from cluster.hashing import canonical_json
from cluster.store.objects import LostRace, Objects, Versioned

logger = logging.getLogger(__name__)

HEARTBEAT_S = 15.0
STALE_S = 90.0
WAKE_UP = signal.SIGUSR1
"""The signal that gets the main thread out of whatever it waits for when the lease is lost."""
LAST_SECOND = 253402300799.0
"""The end of the year 9999: no calendar goes on behind it."""

Text = Annotated[str, Field(max_length=256, pattern=r"^[^\x00-\x1f\x7f-\x9f]*$")]
Pid = Annotated[int, Field(ge=1, lt=2**31)]
Seconds = Annotated[float, Field(ge=0.0, le=LAST_SECOND, allow_inf_nan=False)]


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

    host: Text
    pid: Pid
    token: Text
    since: Seconds
    last_heartbeat: Seconds
    boot_id: Text
    process_started: Text


HOLDER = TypeAdapter(Holder)


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


def _find(store: Objects, run: str) -> tuple[Versioned, Holder] | None:
    """Return a run's lease and its holder, or None when there is no lease.

    Raises:
        RunLocked: What is there is no lease. Whose run it is cannot be known, so it locks the id.
    """
    try:
        found = store.read_versioned(_key(run))
        return None if found is None else (found, HOLDER.validate_json(found.data, strict=True))
    except (ValidationError, CorruptArtifact) as error:
        why = error.message if isinstance(error, CorruptArtifact) else "it is not what a run writes there"
        raise RunLocked(
            f"the lease of {run!r} cannot be read: {why}",
            field="run.name",
            fix=f"give this run another name or, when no run of this one goes on, delete {store.url(_key(run))}",
        ) from None


def _alive(holder: Holder, age_s: float) -> bool:
    """Return whether a holder may still run, ``age_s`` after its last heartbeat by the store's clock."""
    if holder.boot_id == _boot_id():
        process_started = _process_start(holder.pid)
        if process_started is None or process_started != holder.process_started:
            return False
    return age_s < STALE_S


def _acquire(store: Objects, run: str, mine: Holder) -> None:
    found = _find(store, run)
    data = canonical_json(mine._asdict())
    try:
        if found is None:
            store.write(_key(run), data, if_absent=True)
            return
        if not _alive(found[1], found[0].age_s):
            store.write(_key(run), data, if_match=found[0].etag)
            return
    except LostRace:
        found = _find(store, run)
        if found is not None and found[1] == mine:  # the first try succeeded, and only its answer was lost
            return
    holder = None if found is None else found[1]
    other = "another process" if holder is None else f"process {holder.pid} on {holder.host}"
    since = "" if holder is None else f" since {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(holder.since))}"
    raise RunLocked(
        f"{run!r} is running in {other}{since}",
        field="run.name",
        fix=f"wait for it, stop it, or give this run another name; a dead one loses its lease after {STALE_S:.0f} s",
    )


class _Keeper:
    """Keeps a lease by a heartbeat and, when it is lost, interrupts the thread that holds it.

    The main thread is woken by a signal, from sleeps and from Ray's waits alike; KeyboardInterrupt is the only exception
    that the latter let through. Another thread cannot be woken and learns of the loss at the block's end.
    """

    def __init__(self, store: Objects, run: str, mine: Holder) -> None:
        self.store, self.run, self.mine = store, run, mine
        self.lost: str | None = None
        self._in_main = threading.current_thread() is threading.main_thread()
        self._ended = threading.Event()
        self._ending = threading.Lock()
        self._before = signal.signal(WAKE_UP, self._interrupt) if self._in_main else None
        self._thread = threading.Thread(target=self._beat, daemon=True, name=f"lease-{run}")
        self._thread.start()

    def _interrupt(self, _number: int, _frame: FrameType | None) -> None:
        if not self._ended.is_set():
            raise KeyboardInterrupt

    def close(self) -> None:
        """End the heartbeat; give the lease back when it is still this process's."""
        try:
            self._end()
        except KeyboardInterrupt:
            if self.lost is None:
                raise
            self._end()  # the signal came just now, and comes once
        self._thread.join(timeout=5)
        if self._in_main:
            signal.signal(WAKE_UP, self._before or signal.SIG_DFL)
        if self.lost is None:
            self._release()

    def _end(self) -> None:
        """End the heartbeat; no signal is sent after this."""
        with self._ending:
            self._ended.set()

    def _beat(self) -> None:
        while not self._ended.wait(HEARTBEAT_S):
            try:
                self.lost = self._beat_once()
            except ClusterError as error:
                logger.warning("no heartbeat for run %s: %s", self.run, error)
            if self.lost is not None:
                logger.error("run %s stops: %s", self.run, self.lost)
                self._wake_up()
                return

    def _beat_once(self) -> str | None:
        """Renew the lease, or return why it is lost; raise ClusterError when the store cannot be asked."""
        for _ in range(2):
            try:
                found = _find(self.store, self.run)
            except RunLocked as error:
                return error.message
            if found is None:
                return "its lease was deleted"
            version, holder = found
            if holder.token != self.mine.token:
                return f"its lease was taken over by process {holder.pid} on {holder.host}"
            beat = canonical_json(self.mine._replace(last_heartbeat=time.time())._asdict())
            try:
                self.store.write(_key(self.run), beat, if_match=version.etag)
            except LostRace:
                continue  # by another process or, when only the answer was lost, by this write itself
            return None
        return None

    def _wake_up(self) -> None:
        ident = threading.main_thread().ident
        with self._ending:
            if self._in_main and not self._ended.is_set() and ident is not None:
                signal.pthread_kill(ident, WAKE_UP)

    def _release(self) -> None:
        """Give the lease back; an unreachable store must not hide the error that ended the run."""
        try:
            found = _find(self.store, self.run)
            if found is not None and found[1].token == self.mine.token:
                self.store.delete(_key(self.run))
        except ClusterError as error:
            logger.warning("the lease of run %s is not given back and becomes stale: %s", self.run, error)


@contextmanager
def lease(store: Objects, run: str) -> Iterator[None]:
    """Hold the lease of a run's id.

    Another process takes it over when the holder's process has ended on the same running system or, elsewhere, when its
    last heartbeat is ``STALE_S`` seconds old. A holder that was suspended for so long, or whose lease was deleted, is
    stopped at its next heartbeat. What both have published until then stays valid, since each artifact and each move of a
    pointer has one winner.

    Raises:
        RunLocked: Another live process holds it; the message names the process and the time. Or its lease cannot be read.
        LeaseLost: It was lost during the block, which is interrupted at once in the main thread.
    """
    now = time.time()
    pid = os.getpid()
    mine = Holder(socket.gethostname(), pid, secrets.token_hex(8), now, now, _boot_id(), _process_start(pid) or "")
    _acquire(store, run, mine)
    keeper = _Keeper(store, run, mine)
    cause: BaseException | None = None
    try:
        yield
    except BaseException as error:
        cause = error
        raise
    finally:
        keeper.close()
        if keeper.lost is not None:
            raise LeaseLost(
                f"{run!r} has stopped: {keeper.lost}",
                field="run.name",
                fix="let the other process finish, or stop it, and start this run again: it goes on where it was",
            ) from cause
