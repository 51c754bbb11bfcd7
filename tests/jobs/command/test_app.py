"""``safetydpo``: quick help without heavy imports, and the jobs' own exit codes and last lines."""

from __future__ import annotations

import importlib
import os
import resource
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from jobs.command.app import app

ROOT = Path(__file__).parents[3]
HEAVY = ("torch", "ray", "diffusers", "transformers", "boto3", "pyarrow")
COMMANDS = {"preflight", "run", "generate", "train", "merge", "evaluate", "release", "serve", "export", "convert"}


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", *words], cwd=ROOT, capture_output=True, text=True, timeout=120)


def cpu_seconds() -> float:
    """Return the processor's time of all finished children of this process."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_the_console_command_is_the_app() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    assert scripts == {"safetydpo": "jobs.command.app:app"}


def test_it_has_every_job() -> None:
    command = typer.main.get_command(app)
    assert set(command.commands) >= COMMANDS  # type: ignore[attr-defined]


def test_help_is_quick_and_loads_nothing_heavy() -> None:
    script = (
        "import sys\n"
        "from jobs.command.app import app\n"
        "for words in ([], ['run'], ['export'], ['convert']):\n"
        "    try: app([*words, '--help'], prog_name='safetydpo')\n"
        "    except SystemExit as end: assert not end.code\n"
        f"print('loaded', [name for name in {HEAVY!r} if name in sys.modules])\n"
    )
    before = cpu_seconds()
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "loaded []"
    assert "preflight" in done.stdout
    # Not the clock's time: other tests run beside it.
    assert cpu_seconds() - before < 2.0


@pytest.mark.slow
@pytest.mark.parametrize("command", ["run", "export"])
def test_a_wrong_config_ends_as_in_the_jobs_own_module(command: str, tmp_path: Path) -> None:
    lost = tmp_path / "lost.yaml"
    module = {"run": "jobs.pipeline", "export": "jobs.export"}[command]
    more = ("--form", "kohya", "--output", str(tmp_path / "x.safetensors")) if command == "export" else ()
    own = run(module, "--config", str(lost), *more)
    done = CliRunner().invoke(app, [command, "--config", str(lost), *more])
    assert own.returncode == done.exit_code == 2
    assert own.stdout.splitlines()[-1] == done.output.splitlines()[-1]
    assert "no file" in done.output


MODULES = {
    "run": "jobs.pipeline",
    "serve": "serve.__main__",
    "preflight": "jobs.preflight",
    **{name: f"jobs.{name}.__main__" for name in ("generate", "train", "merge", "evaluate", "release")},
    **{name: f"jobs.{name}.command" for name in ("export", "convert")},
}


@pytest.mark.slow
@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_a_subcommand_has_every_option_of_the_jobs_own_module(command: str) -> None:
    alone = typer.Typer(add_completion=False)
    alone.command()(importlib.import_module(MODULES[command]).main)

    def options(parameters: list[Any]) -> dict[str, bool]:
        return {name: each.required for each in parameters for name in each.opts}

    known: Any = typer.main.get_command(app)
    assert options(known.commands[command].params) == options(typer.main.get_command(alone).params)


def test_it_finds_the_users_modules_in_the_working_folder(tmp_path: Path) -> None:
    """An installed program's own folder is searched for modules, and not the working one: a run's judges lie there."""
    (tmp_path / "my_judges.py").write_text("loaded = True\n", encoding="utf-8")
    script = (
        "from jobs.command.app import app\n"
        "try: app(['export', '--help'], prog_name='safetydpo')\n"
        "except SystemExit: pass\n"
        "import my_judges\n"
    )
    surroundings = {**os.environ, "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-P", "-c", script]
    done = subprocess.run(words, cwd=tmp_path, env=surroundings, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_a_checkout_that_is_not_installed_has_it_as_a_module() -> None:
    done = run("jobs.command", "--help")
    assert done.returncode == 0
    assert "safetydpo [OPTIONS] COMMAND" in done.stdout
