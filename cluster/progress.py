"""Live progress of a run's stages: bars in a terminal, plain lines elsewhere; and the level of Ray Data's output."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

PLAIN_INTERVAL_S = 15.0


class StageProgress:
    """Counts a stage's finished units, and shows the elapsed and the remaining time."""

    def __init__(self, console: Console, title: str, total: int, unit: str, done: int = 0) -> None:
        """Count ``total`` units called ``unit``, of which an earlier run has finished ``done``."""
        self.console, self.title, self.total, self.unit = console, title, total, unit
        self.done = self._earlier = done
        self._started = self._shown = time.monotonic()
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        """Start the clock and, in a terminal, the bar."""
        self._started = self._shown = time.monotonic()
        if self.console.is_terminal:
            self._bar = Progress(
                TextColumn("[bold]{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn(self.unit),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=self.console,
            )
            self._bar.start()
            self._task = self._bar.add_task(self.title, total=self.total, completed=self.done)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the bar."""
        if self._bar is not None:
            self._bar.stop()

    def advance(self, units: int = 1, note: str = "") -> None:
        """Count finished units; ``note`` is shown beside them."""
        self.done += units
        if self._bar is not None and self._task is not None:
            description = f"{self.title} {escape(note)}".strip()
            self._bar.update(self._task, completed=self.done, description=description)
            return
        now = time.monotonic()
        if now - self._shown >= PLAIN_INTERVAL_S or self.done >= self.total:
            self._shown = now
            taken = _clock(now - self._started)
            counted = f"{self.title}: {self.done}/{self.total} {self.unit}"
            self.console.print(f"{counted}, {taken} taken, {self.left()} left {escape(note)}".rstrip())

    def left(self) -> str:
        """Return the remaining time at the pace so far, such as "1:25"; "?" before the first unit."""
        paced = self.done - self._earlier
        if paced <= 0:
            return "?"
        return _clock((time.monotonic() - self._started) / paced * max(0, self.total - self.done))


def _clock(seconds: float) -> str:
    """Return a duration as minutes and seconds, "1:25", or with hours, "2:01:25"."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


@contextmanager
def timed(console: Console, title: str, seconds: dict[str, float]) -> Iterator[None]:
    """Announce a stage and store its wall-clock seconds in ``seconds``."""
    console.rule(f"[bold]{title}", align="left")
    started = time.monotonic()
    yield
    seconds[title] = round(time.monotonic() - started, 1)
    console.print(f"{title} took {seconds[title]:.0f} s")


def set_ray_data_console_level(level: int) -> None:
    """Set the lowest level that Ray Data prints to the terminal; its log file keeps everything."""
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setLevel(level)
