"""Kills processes in the middle of their work, without a word of warning."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tests.faults.small_run import Write, writes

POLL_S = 0.05
LIMIT_S = 500.0


class Kill(NamedTuple):
    """Who was killed, when, and after how many writes of the watched kind."""

    pid: int
    at: float
    seen: int


class Killer:
    """Kills, again and again, one of the processes that write keys holding ``part``, once they have got on."""

    def __init__(self, log: Path, part: str, count: int, seed: int) -> None:
        """Start watching ``log``; kill ``count`` times."""
        self.log, self.part, self.count = log, part, count
        self.kills: list[Kill] = []
        self._draw = random.Random(seed)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop watching."""
        self._stop.set()
        self._thread.join(timeout=10)

    def _run(self) -> None:
        seen, deadline = 0, time.monotonic() + LIMIT_S
        while len(self.kills) < self.count and not self._stop.wait(POLL_S) and time.monotonic() < deadline:
            found = writes(self.log, self.part)
            gained = [write for write in found[seen:] if write.pid not in self.dead]
            if len(gained) < self._draw.choice((1, 2, 3)):
                continue
            time.sleep(self._draw.uniform(0.0, 0.2))
            if self._kill(self._draw.choice(gained), len(found)):
                seen = len(found)

    def _kill(self, write: Write, seen: int) -> bool:
        try:
            os.kill(write.pid, signal.SIGKILL)
        except ProcessLookupError:
            return False
        self.kills.append(Kill(write.pid, time.time(), seen))
        return True

    @property
    def dead(self) -> set[int]:
        """Return the ids of the killed processes."""
        return {kill.pid for kill in self.kills}


def descendants(pid: int) -> dict[int, str]:
    """Return the titles of the processes below one, by their ids."""
    parents: dict[int, int] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(status.parent.name)] = int(status.read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError, ValueError):
            continue
    below: set[int] = {pid}
    while more := {child for child, parent in parents.items() if parent in below} - below:
        below |= more
    return {child: _title(child) for child in below - {pid}}


def _title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def wait_for(condition: Callable[[], bool], what: str, limit_s: float = LIMIT_S) -> None:
    """Wait until a condition holds; fail with what did not come about."""
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {limit_s:g} s for {what}"
        time.sleep(POLL_S)
