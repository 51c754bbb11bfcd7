"""Reading of a run's YAML that extends a preset or another file: the files merged key by key, the nearest one wins.

    extends: sd15

A plain word names a preset of this folder; a path, relative to the file that names it, another YAML. A preset may extend
another one too. Under ``requires`` a preset lists what it cannot know, such as the judge: a run that does not set it is
refused with the preset's own words. Neither key is part of the result.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safety.documents import read_mapping
from safety.errors import ConfigError

EXTENDS, REQUIRES = "extends", "requires"
FOLDER = Path(__file__).resolve().parent
ENDING = ".yaml"
OR = " or "
"""Between keys of which a preset requires one."""
LABELLED = ("run", "release")
"""Sections whose ``name`` is the user's own word, and says nothing of their kind."""


class Requirement(NamedTuple):
    """A key that a run must set itself."""

    preset: str
    """The preset that the run, or a file that it extends, names."""
    key: str
    """Dotted, such as "generate.judge.name"; several with "or" between them, of which one is enough."""
    fix: str


def preset_names() -> list[str]:
    """Return the names of the presets, sorted, without those that are there to be extended by others (``_base``)."""
    return sorted(path.stem for path in FOLDER.glob(f"[!_]*{ENDING}"))


def read_extended(path: Path, *, field: str, what: str) -> dict[str, Any]:
    """Return the mapping in a YAML file with everything filled in that it extends.

    Args:
        path: The file.
        field: The error's field for a file that cannot be read.
        what: What the file should be, for the fix.

    Raises:
        ConfigError: A file is missing, holds no mapping, or extends itself; a preset is unknown; or keys that a preset
            requires are not set, all of which are named.
    """
    requirements: list[Requirement] = []
    document = _resolved(path, (), requirements, field, what)
    missing = [each for each in requirements if all(_get(document, key) is None for key in each.key.split(OR))]
    if missing:
        keys = ", ".join(key for _, key, _ in missing)
        raise ConfigError(
            f"{path}: the preset {missing[0].preset} leaves {keys} to the run, which does not set "
            f"{'it' if len(missing) == 1 else 'them'}",
            field=keys,
            fix="; ".join(fix for _, _, fix in missing),
        )
    return document


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``above`` laid over ``below``: mappings are merged key by key, all else is replaced.

    A mapping with another ``name`` than the one below is of another kind (an objective, a merge method, a judge), whose
    parameters mean something else: it replaces the whole. ``run.name`` and ``release.name`` are names of no kind.
    """
    result = dict(below)
    for key, value in above.items():
        old = result.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping) and _of_one_kind(key, old, value):
            result[key] = merged(old, value)
        else:
            result[key] = value
    return result


def _of_one_kind(section: str, below: Mapping[str, Any], above: Mapping[str, Any]) -> bool:
    return section in LABELLED or above.get("name", below.get("name")) == below.get("name")


def _resolved(
    path: Path, above: tuple[Path, ...], requirements: list[Requirement], field: str, what: str
) -> dict[str, Any]:
    """Return a file's mapping over those that it extends; ``above`` are the files that led to it."""
    document = read_mapping(path, field=field, what=what)
    if REQUIRES in document and not _is_preset(path):
        raise ConfigError(f"{path}: the key {REQUIRES!r} is for presets alone", field=REQUIRES, fix="remove it")
    chain = (*above, path.resolve())
    for key, fix in document.pop(REQUIRES, {}).items():
        named = next(link for link in chain if _is_preset(link))
        requirements.append(Requirement(named.stem, key, fix))
    if EXTENDS not in document:
        return document
    extended = _named(document.pop(EXTENDS), path)
    if extended.resolve() in chain:
        names = " -> ".join(link.name for link in (*chain, extended))
        raise ConfigError(f"{path}: it extends itself ({names})", field=EXTENDS, fix="extend another file, or none")
    return merged(_resolved(extended, chain, requirements, EXTENDS, "a preset, or a YAML file by its path"), document)


def _named(name: Any, path: Path) -> Path:
    """Return the file that ``extends`` names in ``path``; raise ConfigError for what is no preset and no path."""
    known = [found.stem for found in FOLDER.glob(f"*{ENDING}")] if _is_preset(path) else preset_names()
    if isinstance(name, str) and name in known:
        return FOLDER / f"{name}{ENDING}"
    if isinstance(name, str) and ("/" in name or name.endswith((".yaml", ".yml"))):
        return path.parent / name
    raise ConfigError(
        f"{path}: there is no preset {name!r}",
        field=EXTENDS,
        fix=f"use one of: {', '.join(preset_names())}; or the path of a YAML file",
    )


def _is_preset(path: Path) -> bool:
    return path.resolve().parent == FOLDER


def _get(document: Mapping[str, Any], key: str) -> Any:
    found: Any = document
    for part in key.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found
