"""The embedded world's names stand in its own package alone, so that another world meets none of them."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROOMS = ("safety", "cluster", "jobs", "serve")
SUFFIXES = {".py", ".j2", ".html", ".css"}
WORLD = ROOT / "safety" / "emoji"
NAMES = re.compile(r"emoji|kitchen|knife|skull|(?<![a-z])zoo(?![a-z])", re.IGNORECASE)
EXCEPTIONS = {
    "safety/embedded.py": "gives the world's names and paths to general code under neutral names",
    "safety/taxonomy.py": "a line names the former key of a concept's symbol",
    "jobs/world.py": "the command that builds the world; nothing imports it",
}


def found(path: Path) -> list[str]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if NAMES.search(line)]


def test_general_code_names_nothing_of_the_embedded_world() -> None:
    files = [path for room in ROOMS for path in (ROOT / room).rglob("*") if path.suffix in SUFFIXES]
    general = {path.relative_to(ROOT).as_posix(): path for path in files if not path.is_relative_to(WORLD)}
    assert len(general) > 150
    leaks = {name: lines for name, path in general.items() if name not in EXCEPTIONS and (lines := found(path))}
    assert leaks == {}
    assert found(ROOT / "safety/taxonomy.py") == ['RENAMED = {"emoji": "symbol"}']
    assert found(ROOT / "safety/embedded.py") == [
        "from safety import emoji as world",
        "EMBEDDED_MODEL_FOLDER = world.ZOO",
    ]


def test_only_the_command_that_builds_the_world_imports_its_workshop() -> None:
    workshop = re.compile(r"safety\.emoji\.build|safety\.emoji import .*\bbuild\b")
    files = [path for room in ROOMS for path in (ROOT / room).rglob("*.py")]
    users = {
        path.relative_to(ROOT).as_posix()
        for path in files
        if not path.is_relative_to(WORLD / "build")
        and any(workshop.search(line) for line in path.read_text(encoding="utf-8").splitlines() if "import" in line)
    }
    assert users == {"jobs/world.py"}
