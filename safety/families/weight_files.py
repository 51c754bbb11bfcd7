"""The files of a diffusers folder: which of a part's ("unet") are read, which lie unread beside them, and what is wrong with one.

Only safetensors are ever read: other formats can run code, or are for other tools. A download of a model usually holds
several of each.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open

from safety.errors import ArtifactFormatError, ConfigError

INDEX_FILE = "model_index.json"
LEFT_OUT = ("safety_checker", "feature_extractor", "image_encoder")
"""Parts that a folder may list and no family here loads."""
STEM = r"(?:diffusion_pytorch_model|model)"
VARIANT = r"(?:\.(?P<variant>[A-Za-z0-9_]+))?"
SINGLE = re.compile(rf"{STEM}{VARIANT}\.safetensors")
SHARDED = re.compile(rf"{STEM}\.safetensors\.index{VARIANT}\.json")
"""The list of the files that hold one model together."""
PREFERRED = ("", "fp16", "bf16")
"""Variants by preference, the one without a name first."""
PICKLED = "pickled"
OTHER_WEIGHTS = {
    **dict.fromkeys((".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"), PICKLED),
    **dict.fromkeys(
        (".msgpack", ".h5", ".onnx", ".onnx_data", ".pb", ".xml", ".tflite", ".gguf", ".pdparams"), "for another tool"
    ),
}
"""Endings of weights that are never read, and why."""
SETTINGS = (".json", ".txt", ".model", ".jinja")
POINTER = b"version https://git-lfs"
REPLACED = {
    POINTER: ("it is a git-lfs pointer, not the file itself", "run 'git lfs pull' in the folder"),
    b"<": ("it holds a web page, such as a server's error", "download it again"),
    b"PK\x03\x04": ("it is a pickle under another name", "download the safetensors file"),
    b"\x80": ("it is a pickle under another name", "download the safetensors file"),
}
"""What a download that went wrong begins with, what it is then, and the fix."""
AGAIN = "download or save the model again"


class PartFiles(NamedTuple):
    """The files of one part of a model."""

    variant: str
    """The variant that is read, such as "fp16"; empty for the one without a name, and where there are no weights."""
    weights: tuple[Path, ...]
    """The safetensors files that are read, with the list of shards if there is one; none: only other formats, or none."""
    settings: tuple[Path, ...]

    @property
    def read(self) -> tuple[Path, ...]:
        """Return every file that loading the part may read."""
        return (*self.settings, *self.weights)


def broken(path: PurePath, why: str, fix: str = AGAIN) -> ArtifactFormatError:
    """Return the error about a file or folder of a model."""
    return ArtifactFormatError(f"{path}: {why}", field="model.path", fix=fix)


def read_index(folder: Path) -> dict[str, Any]:
    """Return a folder's ``model_index.json``; raise ConfigError without one, ArtifactFormatError for an unreadable one."""
    path = folder / INDEX_FILE
    if not path.is_file():
        raise ConfigError(
            f"no diffusers-format model in {folder}",
            field="model.path",
            fix=f"name a folder that holds {INDEX_FILE}",
        )
    return read_json(path)


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON object; raise ArtifactFormatError, which says what the file is, for anything else."""
    found = parse_json(path)
    if not isinstance(found, dict):
        raise broken(path, "it is no JSON object")
    return found


def listed_parts(index: Mapping[str, Any]) -> list[str]:
    """Return the parts that a ``model_index.json`` gives a class, without those that no family here loads."""
    return [
        name
        for name, value in index.items()
        if isinstance(value, list) and value[-1:] not in ([], [None]) and name not in LEFT_OUT and name[:1] != "_"
    ]


def parse_json(path: Path) -> Any:
    """Return a JSON file's content; raise ArtifactFormatError, which says what the file is, for anything else."""
    require_downloaded(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise broken(path, f"it is not valid JSON ({error})") from None


def part_files(folder: Path, variant: str | None = None) -> PartFiles:
    """Return the files of a part, chosen by name alone; raise ArtifactFormatError when the choice is not clear.

    The variant that is asked for is preferred, then the weights without a variant's name, then fp16, then bf16, then the
    only other variant.
    """
    files = sorted(path for path in folder.iterdir() if _is_seen(path)) if folder.is_dir() else []
    variants: dict[str, list[Path]] = {}
    for path in files:
        if found := SINGLE.fullmatch(path.name):
            variants.setdefault(found["variant"] or "", []).append(path)
        elif found := SHARDED.fullmatch(path.name):
            variants.setdefault(found["variant"] or "", []).extend([path, *_shards(path)])
    plain = tuple(path for path in files if is_plain(path.name, alone=not variants))
    if not variants:
        return PartFiles("", (), plain)
    name = chosen_variant(folder, variants, variant)
    return PartFiles(name, tuple(sorted(set(variants[name]))), plain)


def chosen_variant(part: PurePath, variants: Collection[str], variant: str | None) -> str:
    """Return which of a part's variants is read; raise ArtifactFormatError when there is no telling."""
    chosen = next((name for name in (variant, *PREFERRED) if name in variants), None)
    if chosen is None and len(variants) > 1:
        raise broken(
            part,
            f"it has the variants {', '.join(sorted(variants))}, and none of them is preferred",
            "name one of them (model.variant)",
        )
    return next(iter(variants)) if chosen is None else chosen


def _is_seen(path: Path) -> bool:
    """Return whether a path is a file, and not a hidden one, such as the "._config.json" of another system."""
    return path.is_file() and not path.name.startswith(".")


def is_plain(name: str, *, alone: bool) -> bool:
    """Return whether a file is a setting or a vocabulary, or safetensors under a name of their own.

    Those are what a new family may read where they are a part's only safetensors (``alone``); beside weights of the usual
    names, they are the same again for another tool.
    """
    if name.endswith(".safetensors"):
        return alone and re.match(STEM, name) is None
    return name.endswith(SETTINGS) and ".index." not in name


def _shards(index: Path) -> list[Path]:
    """Return the files that a list of shards names; raise ArtifactFormatError for a list that names none beside it."""
    named = read_json(index).get("weight_map")
    if not isinstance(named, dict) or not named:
        raise broken(index, "it lists no weights")
    names = sorted({str(name) for name in named.values()})
    odd = next((name for name in names if Path(name).name != name or not name.endswith(".safetensors")), None)
    if odd is not None:
        raise broken(index, f"it names {odd!r}, which is no safetensors file beside it")
    lost = next((name for name in names if not (index.parent / name).is_file()), None)
    if lost is not None:
        raise broken(index, f"it names {lost}, which is missing")
    return [index.parent / name for name in names]


def require_weights(folder: Path) -> PartFiles:
    """Return a part's files after a look at each; raise ArtifactFormatError, which names the one that cannot be read."""
    found = part_files(folder)
    if not found.weights:
        others = (
            sorted(path.name for path in folder.iterdir() if path.suffix in OTHER_WEIGHTS) if folder.is_dir() else []
        )
        shards = sorted(path.name for path in folder.glob("*-of-*.safetensors"))
        if shards and not others:
            raise broken(folder, f"it holds {shards[0]}, and no list of its shards (*.safetensors.index.json)")
        if not others:
            raise broken(folder, "it holds no weights", "download the whole model, its safetensors included")
        kind = OTHER_WEIGHTS[Path(others[0]).suffix]
        raise broken(
            folder,
            f"its only weights are {', '.join(others[:3])} ({kind}), and safetensors alone are read",
            "download the model's safetensors; or, where you trust its pickles, turn them into safetensors with "
            "python -m jobs.convert",
        )
    for path in found.weights:
        if path.suffix == ".safetensors":
            require_whole(path)
    return found


def require_folder(folder: Path) -> None:
    """Look at every file that a model of any family is read from, without loading it.

    Raises:
        ConfigError: The folder holds no diffusers-format model.
        ArtifactFormatError: A file is missing or damaged, or a part has no safetensors.
    """
    for name in listed_parts(read_index(folder)):
        part = folder / name
        if not part.is_dir():
            raise broken(part, f"{INDEX_FILE} lists it, and it is not there")
        found = part_files(part)
        for path in found.settings:
            if path.suffix == ".json":
                parse_json(path)
        if any(path.suffix in (".safetensors", *OTHER_WEIGHTS) for path in part.iterdir()):
            require_weights(part)


def require_whole(path: Path) -> None:
    """Read the header of a safetensors file, which gives the file's length; raise ArtifactFormatError when it is wrong."""
    require_downloaded(path)
    try:
        with safe_open(path, "pt") as handle:
            empty = not list(handle.keys())
    except (SafetensorError, OSError) as error:
        raise broken(path, f"it is not a whole safetensors file ({error})") from None
    if empty:
        raise broken(path, "it holds no tensor")


def require_downloaded(path: Path) -> None:
    """Raise ArtifactFormatError for a missing or empty file, or for what a failed download leaves in its place."""
    try:
        with path.open("rb") as stream:
            start = stream.read(len(POINTER))
    except OSError as error:
        raise broken(path, f"it cannot be read ({error.strerror})", AGAIN) from None
    if not start:
        raise broken(path, "it is empty")
    for sign, (what, fix) in REPLACED.items():
        # A safetensors file begins with a length of its header, which may be any byte.
        if start.startswith(sign) and not (len(sign) == 1 and start[7:8] == b"\0"):
            raise broken(path, what, fix)


def unread_weights(folder: Path, read: set[Path]) -> Iterator[str]:
    """Yield the names, below a model's folder, of weights that are not among ``read``.

    They are pickles and their like anywhere, and safetensors at the top and beside what is read. Hidden folders are left
    out.
    """
    places = {folder, *(path.parent for path in read)}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path in read or any(part.startswith(".") for part in name.parts) or not path.is_file():
            continue
        if path.suffix in OTHER_WEIGHTS or (path.suffix == ".safetensors" and path.parent in places):
            yield name.as_posix()
