"""Progress as a log file and as a terminal show it."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from cluster import progress
from cluster.progress import StageProgress, timed


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(progress.time, "monotonic", found)
    return found


def plain() -> tuple[Console, io.StringIO]:
    file = io.StringIO()
    return Console(file=file, width=120), file


def test_a_log_file_gets_plain_lines_now_and_then_and_the_last_one(clock: Clock) -> None:
    console, file = plain()
    with StageProgress(console, "render", 40, "groups") as shown:
        assert shown.left() == "?"
        for _ in range(40):
            clock.now += 1.0
            shown.advance(note="kept 3")
    lines = file.getvalue().splitlines()
    assert lines == [
        "render: 15/40 groups, 0:15 taken, 0:25 left kept 3",
        "render: 30/40 groups, 0:30 taken, 0:10 left kept 3",
        "render: 40/40 groups, 0:40 taken, 0:00 left kept 3",
    ]
    assert "\x1b" not in file.getvalue()


def test_the_time_left_is_the_pace_so_far(clock: Clock) -> None:
    console, _ = plain()
    with StageProgress(console, "fit", 10, "steps") as shown:
        clock.now += 30.0
        shown.advance(3)
        assert shown.left() == "1:10"
        shown.advance(9)
        assert shown.left() == "0:00"
        shown.total = 1012
        assert shown.left() == "41:40"
        clock.now += 90.0
        assert shown.left() == "2:46:40"


def test_what_an_earlier_run_finished_does_not_count_as_pace(clock: Clock) -> None:
    console, file = plain()
    with StageProgress(console, "search", 100, "trials", done=90) as shown:
        assert shown.left() == "?"
        clock.now += 20.0
        shown.advance()
        assert shown.left() == "3:00"
    assert file.getvalue() == "search: 91/100 trials, 0:20 taken, 3:00 left\n"


def test_a_terminal_gets_a_bar() -> None:
    file = io.StringIO()
    with StageProgress(Console(file=file, force_terminal=True, width=100), "render", 4, "groups") as shown:
        shown.advance(3, note="kept 2")
    text = file.getvalue()
    assert "render kept 2" in text
    assert "3/4" in text
    assert "groups" in text
    assert "\x1b[" in text


def test_the_bar_ends_with_the_block_even_when_it_fails() -> None:
    console = Console(file=io.StringIO(), force_terminal=True)
    with pytest.raises(ZeroDivisionError), StageProgress(console, "render", 4, "groups"):
        raise ZeroDivisionError
    with StageProgress(console, "again", 4, "groups") as shown:  # rich refuses a second live bar
        shown.advance()


def test_a_stage_s_seconds_are_noted(clock: Clock) -> None:
    console, file = plain()
    seconds: dict[str, float] = {}
    with timed(console, "train", seconds):
        clock.now += 12.34
    assert seconds == {"train": 12.3}
    assert "train took 12 s" in file.getvalue()
