"""Which files of a model that lies elsewhere are fetched, by their names alone: what is read of them, and no more.

A hub's repository often holds the same weights five times: safetensors, pickles, single files, other tools' formats.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Sequence
from pathlib import PurePosixPath

from safety.families.weight_files import (
    INDEX_FILE,
    LEFT_OUT,
    OTHER_WEIGHTS,
    SETTINGS,
    STEM,
    broken,
    chosen_variant,
    is_plain,
)

WEIGHTS = re.compile(
    rf"{STEM}(?:\.(?P<variant>[A-Za-z0-9_]+?))?(?:-\d+-of-\d+(?:\.(?P<old>\w+))?)?"
    r"\.safetensors(?:\.index(?:\.(?P<late>\w+))?\.json)?"
)
"""A file of weights, a shard of them, or the list of shards; in lists, and in the shards of older versions, the variant stands last."""


def files_read(names: Sequence[str], variant: str | None, listed: Collection[str] | None = None) -> list[str]:
    """Return the names of a model's files that loading it reads, of all that lie below its folder.

    Args:
        names: Paths relative to the model's folder, with slashes.
        variant: The weights that are asked for; None: as ``part_files`` prefers them.
        listed: The parts that the model's index lists; None: every folder is one.

    Raises:
        ArtifactFormatError: A part has weights, and none in safetensors, or several variants of which none is preferred.
    """
    parts: dict[str, list[PurePosixPath]] = defaultdict(list)
    for name in names:
        path = PurePosixPath(name)
        # Of "unet//x", which a store may hold, no folder can have a file.
        if path.as_posix() == name and len(path.parts) <= 2 and not any(each.startswith(".") for each in path.parts):
            parts[path.parts[0] if len(path.parts) == 2 else ""].append(path)
    top = parts.pop("") if "" in parts else []
    # A folder without an index is one network, such as a VAE of its own.
    pipeline = any(path.name == INDEX_FILE for path in top)
    if not pipeline:
        return [
            name for name in _part("the folder", top, variant) if WEIGHTS.fullmatch(name) or name.endswith(SETTINGS)
        ]
    found = [INDEX_FILE, *(path.as_posix() for path in top if path.suffix == ".md" and path.stem.isupper())]
    for part in sorted(parts.keys() - set(LEFT_OUT) if listed is None else parts.keys() & set(listed)):
        found += _part(part, parts[part], variant)
    return found


def _part(part: str, files: Sequence[PurePosixPath], variant: str | None) -> list[str]:
    """Return the files of one part, its settings first."""
    weights: dict[str, list[str]] = defaultdict(list)
    for path in files:
        if match := WEIGHTS.fullmatch(path.name):
            weights[match["late"] or match["old"] or match["variant"] or ""].append(path.as_posix())
    chosen = [path.as_posix() for path in files if is_plain(path.name, alone=not weights)]
    if weights:
        return [*chosen, *weights[chosen_variant(PurePosixPath(part), weights, variant)]]
    others = sorted(path.name for path in files if path.suffix in OTHER_WEIGHTS)
    if others and any(path.name == "config.json" for path in files):
        kind = OTHER_WEIGHTS[PurePosixPath(others[0]).suffix]
        raise broken(
            PurePosixPath(part),
            f"its only weights are {', '.join(others[:3])} ({kind}), and safetensors alone are read",
            "name a model or a revision with safetensors; or download it, where you trust it, and turn it into them with "
            "python -m jobs.convert",
        )
    return chosen
