"""What of a model is turned into safetensors, and what is copied as it is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from safety.errors import ConfigError
from safety.families.model_index import model_parts
from safety.families.weight_files import (
    INDEX_FILE,
    OTHER_WEIGHTS,
    PICKLED,
    PREFERRED,
    broken,
    part_files,
    read_json,
)

STEMS = {"pytorch_model": "model", "diffusion_pytorch_model": "diffusion_pytorch_model"}
"""Names of pickled weights, and of the same as safetensors."""
NAME = re.compile(
    rf"(?P<stem>{'|'.join(STEMS)})(?:\.(?P<variant>[A-Za-z0-9_]+?))?(?P<shard>-\d+-of-\d+)?\.bin(?P<index>\.index(?:\.(?P<late>\w+))?\.json)?"
)
ENDINGS = tuple(ending for ending, kind in OTHER_WEIGHTS.items() if kind == PICKLED)
FIELD = "--model"


class Plan(NamedTuple):
    """Files by what is done with them; targets are names below the output folder."""

    convert: dict[Path, str]
    copy: dict[Path, str]
    lists: dict[Path, str]
    """Lists of shards, which name safetensors afterwards."""


def plan(model: Path) -> Plan:
    """Return what is done with a model.

    Raises:
        ConfigError: There is no model, or nothing in it is pickled.
        ArtifactFormatError: A file of it is damaged, or a part has no weights.
    """
    found = Plan({}, {}, {})
    if model.is_file():
        if model.suffix not in ENDINGS:
            raise ConfigError(
                f"{model} is not pickled", field=FIELD, fix=f"name a file of {', '.join(ENDINGS)}, or a folder"
            )
        found.convert[model] = f"{model.stem}.safetensors"
        return found
    if (model / INDEX_FILE).is_file():
        found.copy[model / INDEX_FILE] = INDEX_FILE
        for name in model_parts(model):
            _add_part(found, model / name, f"{name}/")
    elif (model / "config.json").is_file():
        _add_part(found, model, "")
    else:
        raise ConfigError(
            f"no model in {model}",
            field=FIELD,
            fix=f"name a folder with {INDEX_FILE} or config.json, or a pickled file",
        )
    if not found.convert:
        raise ConfigError(f"nothing that is read of {model} is pickled", field=FIELD, fix="use it as it is")
    return found


def _add_part(found: Plan, part: Path, below: str) -> None:
    """Add the files of a part: its safetensors as they are where it has some, or else one variant of its pickles."""
    files = part_files(part)
    found.copy.update({path: f"{below}{path.name}" for path in files.read})
    if files.weights:
        return
    variants: dict[str, dict[Path, re.Match[str]]] = {}
    for path in sorted(part.iterdir()):
        if match := NAME.fullmatch(path.name):
            variants.setdefault(match["late"] or match["variant"] or "", {})[path] = match
    chosen = next((name for name in (*PREFERRED, *sorted(variants)) if name in variants), None)
    if chosen is None:
        if any(path.suffix in OTHER_WEIGHTS for path in part.iterdir()):
            raise broken(part, f"its weights have other names than {' and '.join(f'{stem}.bin' for stem in STEMS)}")
        return
    for path, match in variants[chosen].items():
        variant = f".{match['variant']}" if match["variant"] else ""
        if match["index"]:
            found.lists[path] = f"{below}{STEMS[match['stem']]}.safetensors{match['index']}"
        else:
            name = f"{STEMS[match['stem']]}{variant}{match['shard'] or ''}.safetensors"
            found.convert[path] = f"{below}{name}"
    # The library would take the list where a folder has both.
    if found.lists and any(match["shard"] is None and not match["index"] for match in variants[chosen].values()):
        for path in [path for path, match in variants[chosen].items() if match["shard"] or match["index"]]:
            found.lists.pop(path, None)
            found.convert.pop(path, None)


def renamed_list(path: Path) -> dict[str, object]:
    """Return a list of shards with the names that they get."""
    document = read_json(path)
    shards = document.get("weight_map")
    if not isinstance(shards, dict):
        raise broken(path, "it lists no weights")
    names = {}
    for weight, shard in shards.items():
        match = NAME.fullmatch(str(shard))
        if match is None or match["index"]:
            raise broken(path, f"it names {shard!r}, which is no pickled file beside it")
        variant = f".{match['variant']}" if match["variant"] else ""
        names[weight] = f"{STEMS[match['stem']]}{variant}{match['shard'] or ''}.safetensors"
    return {**document, "weight_map": names}
