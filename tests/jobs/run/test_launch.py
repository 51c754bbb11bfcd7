"""The end of a job: its exit code and its last line."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import ray
import typer
from rich.console import Console

from cluster.errors import EXIT_USER_ERROR, ClusterError
from cluster.submission import VARIABLE
from jobs.run import launch
from jobs.run.config import RunConfig
from jobs.run.launch import (
    EXIT_FAULT,
    EXIT_STOPPED,
    STOPPED,
    job_page,
    links,
    make_console,
    opened,
    stop_on_sigterm,
)
from jobs.run.ray_data import first_cause
from safety.errors import ConfigError

ROOT = Path(__file__).parents[3]


def reported(error: Exception) -> tuple[int, list[str]]:
    file = io.StringIO()
    code = launch._report(Console(file=file, width=60), error)
    return code, file.getvalue().rstrip("\n").split("\n")


def test_a_known_cause_is_one_line_however_long() -> None:
    cause = ConfigError("it is\nnot [right]", field="run.name" * 20, fix="repair it")
    code, lines = reported(cause)
    assert code == EXIT_USER_ERROR
    assert lines == [f"{'run.name' * 20}: it is not [right]. Fix: repair it"]


def test_another_error_has_its_traceback_and_then_its_name() -> None:
    def fail() -> None:
        raise ValueError("not\n  a [number]")

    with pytest.raises(ValueError, match="not") as caught:
        fail()
    code, lines = reported(caught.value)
    assert code == EXIT_FAULT
    assert lines[-1] == "ValueError: not a [number]"
    assert any("in fail" in line for line in lines)


def test_rays_wrapping_of_an_unknown_error_is_taken_off() -> None:
    cause = ZeroDivisionError("no number")
    wrapped = ray.exceptions.RayTaskError("work", "Traceback: long\nand remote", cause).as_instanceof_cause()
    assert first_cause(wrapped) is cause
    assert reported(wrapped)[1][-1] == "ZeroDivisionError: no number"
    known = ClusterError("gone", field="store", fix="look")
    wrapped = ray.exceptions.RayTaskError("work", "Traceback", known).as_instanceof_cause()
    assert reported(wrapped) == (EXIT_USER_ERROR, ["store: gone. Fix: look"])


@pytest.mark.parametrize(
    ("code", "said", "fix"),
    [
        (errno.EACCES, "Permission denied", "folder of yours"),
        (errno.EROFS, "Read-only file system", "folder of yours"),
        (errno.ENOSPC, "No space left on device", "free some space"),
        (errno.EDQUOT, "Disk quota exceeded", "free some space"),
    ],
)
def test_a_path_that_the_machine_refuses_is_a_known_error_wherever_it_came_up(code: int, said: str, fix: str) -> None:
    error = OSError(code, os.strerror(code), "/data/out")
    wrapped = ray.exceptions.RayTaskError("work", "Traceback", error).as_instanceof_cause()
    for raised in (error, wrapped):
        exit_code, (line,) = reported(raised)
        assert exit_code == EXIT_USER_ERROR
        assert line.startswith(f"/data/out: {said}. Fix: ")
        assert fix in line


def test_another_error_of_the_system_is_not() -> None:
    code, lines = reported(OSError(errno.EIO, "Input/output error", "/data/out"))
    assert (code, lines[-1]) == (EXIT_FAULT, "OSError: [Errno 5] Input/output error: '/data/out'")


def test_sigterm_interrupts_the_main_thread_once() -> None:
    before = signal.getsignal(signal.SIGTERM)
    try:
        stop_on_sigterm()
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
        started = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            time.sleep(30)
        assert time.monotonic() - started < 10
        os.kill(os.getpid(), signal.SIGTERM)  # a second one while it tidies up is not heard
        time.sleep(0.1)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_stopped_job_says_that_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(_: Path) -> None:
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(launch, "load_run", interrupt)
    try:
        with pytest.raises(typer.Exit) as ended, opened(tmp_path / "run.yaml"):
            pytest.fail("it opened")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert ended.value.exit_code == EXIT_STOPPED
    assert capsys.readouterr().out.splitlines()[-1] == STOPPED


def test_a_log_is_wider_than_eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    # Python's readline, which pytest imports, sets COLUMNS behind os.environ's back.
    plain = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    code = "from jobs.run.launch import make_console; print(make_console().width)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=plain, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.strip() == str(launch.LOG_WIDTH)
    monkeypatch.setenv("COLUMNS", "77")
    assert make_console().width == 77


def test_the_links_are_those_of_the_run_and_the_submission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, json.dumps({"metadata": {"job_submission_id": "raysubmit_1"}}))
    assert job_page("http://127.0.0.1:8265") == "http://127.0.0.1:8265/#/jobs/raysubmit_1"
    run = RunConfig.model_validate({"run": {"name": "x", "output": tmp_path}})
    found = {link.what: link.where for link in links(run, "http://127.0.0.1:8265", "s3://bucket/")}
    assert found == {
        "Ray dashboard": "http://127.0.0.1:8265",
        "this job": "http://127.0.0.1:8265/#/jobs/raysubmit_1",
        "expert curves": f"tensorboard --logdir {tmp_path}/tensorboard/experts",
        "merge search": f"tensorboard --logdir {tmp_path}/logs",
        "artifacts": "s3://bucket/",
    }
    assert [link.what for link in links(run, None, "s3://bucket/")] == ["expert curves", "merge search", "artifacts"]


@pytest.mark.parametrize(
    ("taxonomy", "last"),
    [
        (
            "version: 1",
            r"taxonomy\.version: .*version: 1 is a number and must be text.* Fix: put it in quotes: version: \"1\"",
        ),
        ("name: a/b", r"taxonomy\.name: .*it has a slash"),
    ],
)
@pytest.mark.parametrize("folder", ["plain", "odd [red] folder"])
def test_a_mistake_in_a_taxonomy_is_the_last_line_before_any_work(
    tmp_path: Path, taxonomy: str, last: str, folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / folder).mkdir()
    path, config = tmp_path / folder / "taxonomy.yaml", tmp_path / folder / "run.yaml"
    lines = {"name": "name: t", "version": 'version: "1"'} | {taxonomy.partition(":")[0]: taxonomy}
    rows = "concepts: [{name: knife, category: violence, counterpart: spoon}]\nbenign: [{name: spoon}]\n"
    path.write_text("\n".join(lines.values()) + "\n" + rows, encoding="utf-8")
    config.write_text(f"run: {{name: x, output: {tmp_path}/out}}\ntaxonomy: '{path}'\n", encoding="utf-8")
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(typer.Exit) as ended, opened(config):
            pytest.fail("it starts")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert ended.value.exit_code == EXIT_USER_ERROR
    shown = capsys.readouterr().out.strip().splitlines()
    assert re.search(last, shown[-1])
    assert str(path) in shown[-1]
    assert "Traceback" not in "".join(shown)
