"""The rules of the house that no linter holds: no import circle, no arrow hidden in a string, and files of a size."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("jobs", "serve", "safety", "cluster")
MAX_FILE_LINES, MAX_FUNCTION_LINES, MAX_FILES_IN_JOBS = 600, 100, 6
MODULE_NAME = re.compile(r"\b(?:jobs|serve|safety|cluster)(?:\.[a-z_0-9]+)+(?::[a-z_]+)?\b")
FILES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))

Function = ast.FunctionDef | ast.AsyncFunctionDef


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def imports() -> Mapping[str, frozenset[str]]:
    """Return which of our modules each of them imports, late imports and the ``__init__`` files on the way included."""
    graph = grimp.build_graph(*ROOMS, exclude_type_checking_imports=True, cache_dir=None)

    def packages(module: str) -> set[str]:
        parts = module.split(".")
        return {".".join(parts[:end]) for end in range(1, len(parts))}

    def loaded(module: str) -> frozenset[str]:
        direct = graph.find_modules_directly_imported_by(module)
        return frozenset(direct.union(*map(packages, direct)) - packages(module) - {module})

    return {module: loaded(module) for module in graph.modules}


def circles(edges: Mapping[str, frozenset[str]]) -> list[list[str]]:
    """Return the groups of two or more modules that reach each other (Tarjan's strongly connected components)."""
    order: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        order[node] = lowest[node] = len(order)
        stack.append(node)
        for other in edges[node]:
            if other not in order:
                visit(other)
                lowest[node] = min(lowest[node], lowest[other])
            elif other in stack:
                lowest[node] = min(lowest[node], order[other])
        if lowest[node] == order[node]:
            start = stack.index(node)
            group, stack[start:] = stack[start:], []
            found.extend([sorted(group)] if len(group) > 1 else [])

    for node in edges:
        if node not in order:
            visit(node)
    return sorted(found)


def test_circles_are_found() -> None:
    edges = {"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set(), "e": {"a", "f"}, "f": {"e"}}
    assert circles({node: frozenset(others) for node, others in edges.items()}) == [["b", "c"], ["e", "f"]]


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Late imports count, so none of them works against a circle."""
    assert len(imports()) > 150
    assert circles(imports()) == []


def late_imports(path: Path) -> Iterator[ast.Import | ast.ImportFrom]:
    """Yield the imports of our own modules inside functions."""
    for function in ast.walk(tree(path)):
        if not isinstance(function, Function):
            continue
        for node in ast.walk(function):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if any(module.partition(".")[0] in ROOMS for module in modules):
                assert isinstance(node, ast.Import | ast.ImportFrom)
                yield node


def has_reason(lines: list[str], number: int) -> bool:
    """Return whether an import has a comment: on its line, or right above the block of imports that it stands in."""
    above = number - 2
    while above >= 0 and lines[above].lstrip().startswith(("import ", "from ")):
        above -= 1
    return "#" in lines[number - 1] or lines[above].lstrip().startswith("#")


def test_a_late_import_of_ours_has_a_comment_that_gives_its_weight() -> None:
    bare = [
        f"{name(path)}:{node.lineno}"
        for path in FILES
        for node in late_imports(path)
        if not has_reason(path.read_text(encoding="utf-8").splitlines(), node.lineno)
    ]
    assert bare == [], "say in a comment above why it comes late: a slow library; not a circle"


def is_ours(text: str) -> bool:
    """Return whether a dotted name, with or without ``:function``, is a module of ours or something in one."""
    parts = text.partition(":")[0].split(".")
    paths = (ROOT.joinpath(*parts[:end]) for end in (len(parts), len(parts) - 1) if end > 1)
    return any(path.with_suffix(".py").is_file() or (path / "__init__.py").is_file() for path in paths)


def strings(path: Path) -> Iterator[ast.Constant]:
    """Yield a file's string constants, without docstrings and the strings that describe attributes."""
    module = tree(path)
    documentation = {id(node.value) for node in ast.walk(module) if isinstance(node, ast.Expr)}
    for node in ast.walk(module):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation:
            yield node


def named_modules(text: str) -> list[str]:
    """Return the modules of ours that a string names to a program.

    In prose, which has spaces, they are named to a person ("run jobs.generate again"), unless as ``module:function`` or
    behind an ``import``.
    """
    prose = " " in text
    return [
        match[0]
        for match in MODULE_NAME.finditer(text)
        if is_ours(match[0])
        and not (prose and ":" not in match[0] and not re.search(r"\b(?:from|import) $", text[: match.start()]))
    ]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("serve.admission:middlewares", ["serve.admission:middlewares"]),
        ("serve.app", ["serve.app"]),
        ("set X=serve.app:build before", ["serve.app:build"]),
        ("import sys\nfrom serve.app import build", ["serve.app"]),
        ("run jobs.generate again", []),
        ("publish one with python -m jobs.release, or name another pointer", []),
        ("ray job submit -- python -m jobs.preflight --config FILE", []),
        ("serve.num_cpus", []),
        ("cluster.address", []),
    ],
)
def test_modules_in_strings_are_found(text: str, found: list[str]) -> None:
    assert named_modules(text) == found


def test_no_string_of_one_room_names_a_module_of_another() -> None:
    hidden = [
        f"{name(path)}:{node.lineno}: {module}"
        for path in FILES
        for node in strings(path)
        for module in named_modules(str(node.value))
        if module.partition(".")[0] != name(path).partition("/")[0]
    ]
    assert hidden == [], "pass the object itself, or let the caller above give the name"


def test_jobs_has_few_files_of_its_own() -> None:
    found = [path.name for path in (ROOT / "jobs").iterdir() if path.suffix == ".py"]
    assert len(found) <= MAX_FILES_IN_JOBS, found


def test_files_and_functions_are_of_a_size() -> None:
    long_files = [name(path) for path in FILES if len(path.read_text("utf-8").splitlines()) > MAX_FILE_LINES]
    long_functions = [
        f"{name(path)}:{node.lineno} {node.name}"
        for path in FILES
        for node in ast.walk(tree(path))
        if isinstance(node, Function) and (node.end_lineno or 0) - node.lineno >= MAX_FUNCTION_LINES
    ]
    assert (long_files, long_functions) == ([], [])


def test_each_test_file_has_its_own_name() -> None:
    """Test folders are no packages, so two files of one name cannot be collected in one run."""
    seen: dict[str, list[str]] = {}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        seen.setdefault(path.name, []).append(name(path))
    assert {file: places for file, places in seen.items() if len(places) > 1} == {}
