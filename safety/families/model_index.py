"""The names that a diffusers folder's own files give of other files: plain ones only, so that none leaves the folder.

``model_index.json`` names the parts' folders, ``*.index.json`` the shards of large weights, and a tokenizer's settings
its versions (the other files that they name are not followed). The libraries join such names to the folder's path unseen.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safety.families.weight_files import INDEX_FILE, LEFT_OUT, broken, listed_parts, read_index, read_json

PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")


def model_parts(folder: Path) -> list[str]:
    """Return the names of the parts that are read: a model's index gives them a class, and its folder holds them.

    Raises:
        ConfigError: The folder holds no diffusers-format model.
        ArtifactFormatError: The index is damaged, or one of the folder's files gives a name that is a path.
    """
    index = read_index(folder)
    for name in index:
        if not name.startswith("_"):
            _check(folder / INDEX_FILE, name)
    parts = [name for name in listed_parts(index) if (folder / name).is_dir()]
    for part in parts:
        for file, name in _named_files(folder / part):
            _check(file, name)
    return parts


def absent_parts(folder: Path) -> list[str]:
    """Return the parts that a model's index lists as none: SD3's T5, perhaps. diffusers wants to be told of each by name.

    Parts that no family here loads are not among them.
    """
    index = read_index(folder)
    return [name for name, value in index.items() if value in ([None], [None, None]) and name not in LEFT_OUT]


def _named_files(part: Path) -> Iterator[tuple[Path, Any]]:
    """Yield each file that names others, with each name."""
    for file in sorted(part.glob("*.index*.json")):
        shards = read_json(file).get("weight_map")
        yield from ((file, name) for name in (shards.values() if isinstance(shards, dict) else ()))
    settings = part / "tokenizer_config.json"
    if settings.is_file():
        versions = read_json(settings).get("fast_tokenizer_files")
        yield from ((settings, name) for name in (versions if isinstance(versions, list) else ()))


def _check(file: Path, name: Any) -> None:
    if not isinstance(name, str) or PLAIN.fullmatch(name) is None:
        raise broken(file, f"it names the file {name!r}, and a plain name in the model's own folder is wanted")
