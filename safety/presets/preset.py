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
FOLDER = Path(__file__).parent
ENDING = ".yaml"


class Requirement(NamedTuple):
    """A key that a run must set itself."""

    preset: str
    key: str
    """Dotted, such as "generate.judge.name"."""
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
        ConfigError: A file is missing, holds no mapping, or extends itself; a preset is unknown; or a key that a preset
            requires is not set.
    """
    requirements: list[Requirement] = []
    document = _resolved(path, (), requirements, field, what)
    for preset, key, fix in requirements:
        if _get(document, key) is None:
            raise ConfigError(
                f"{path}: {EXTENDS}: {preset} leaves {key} to the run, which does not set it", field=key, fix=fix
            )
    return document


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``above`` laid over ``below``: mappings are merged key by key, all else is replaced.

    A mapping with another ``name`` than the one below is of another kind (an objective, a merge method, a judge), whose
    parameters mean something else: it replaces the whole.
    """
    result = dict(below)
    for key, value in above.items():
        old = result.get(key)
        if (
            isinstance(old, Mapping)
            and isinstance(value, Mapping)
            and value.get("name", old.get("name")) == old.get("name")
        ):
            result[key] = merged(old, value)
        else:
            result[key] = value
    return result


def _resolved(
    path: Path, above: tuple[Path, ...], requirements: list[Requirement], field: str, what: str
) -> dict[str, Any]:
    """Return a file's mapping over those that it extends; ``above`` are the files that led to it."""
    document = read_mapping(path, field=field, what=what)
    if REQUIRES in document and path.parent != FOLDER:
        raise ConfigError(f"{path}: the key {REQUIRES!r} is for presets alone", field=REQUIRES, fix="remove it")
    for key, fix in document.pop(REQUIRES, {}).items():
        requirements.append(Requirement(path.stem, key, fix))
    if EXTENDS not in document:
        return document
    extended = _named(document.pop(EXTENDS), path)
    chain = (*above, path.resolve())
    if extended.resolve() in chain:
        names = " -> ".join(link.name for link in (*chain, extended))
        raise ConfigError(f"{path}: it extends itself ({names})", field=EXTENDS, fix="extend another file, or none")
    return merged(_resolved(extended, chain, requirements, EXTENDS, "a preset, or a YAML file by its path"), document)


def _named(name: Any, path: Path) -> Path:
    """Return the file that ``extends`` names in ``path``; raise ConfigError for what is no preset and no path."""
    known = preset_names() if path.parent != FOLDER else [found.stem for found in FOLDER.glob(f"*{ENDING}")]
    if isinstance(name, str) and name in known:
        return FOLDER / f"{name}{ENDING}"
    if isinstance(name, str) and ("/" in name or name.endswith((".yaml", ".yml"))):
        return path.parent / name
    raise ConfigError(
        f"{path}: there is no preset {name!r}",
        field=EXTENDS,
        fix=f"use one of: {', '.join(preset_names())}; or the path of a YAML file",
    )


def _get(document: Mapping[str, Any], key: str) -> Any:
    found: Any = document
    for part in key.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found
