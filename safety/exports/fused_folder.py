"""A fused diffusers folder: the base model's own files, with the adapter added to its denoiser's weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from torch import Tensor

from safety.exports.fused_weights import Rounding, denoiser_files, denoiser_part, fused_tensor, tensors_of
from safety.families.model_index import model_parts
from safety.families.weight_files import INDEX_FILE, LEFT_OUT, PartFiles, part_files, read_index, read_json
from safety.lora.weights import LoraWeights
from safety.tensor_format import save_tensors


def write_fused_folder(base: Path, weights: LoraWeights, target: Path) -> Rounding:
    """Write the folder; any program that reads the base reads it too.

    Weights are stored in the base's own types and files, under the names without a variant. Parts that no family reads
    (the safety checker) are left out.

    Args:
        base: The base model's diffusers folder.
        weights: The adapter.
        target: A folder that is empty or not there.

    Raises:
        ConfigError: The folder holds no such model.
        ArtifactFormatError: A file is damaged, or the adapter is for another base.
    """
    files = denoiser_files(base, weights)
    target.mkdir(parents=True, exist_ok=True)
    index = read_index(base)
    kept = [name for name in model_parts(base) if name not in LEFT_OUT]
    lost: dict[str, list[None]] = {name: [None, None] for name in LEFT_OUT if name in index}
    settings = {**index, **lost, **({"requires_safety_checker": False} if "requires_safety_checker" in index else {})}
    changed = denoiser_part(base)
    for part in kept:
        found = files if part == changed else part_files(base / part)
        (target / part).mkdir(exist_ok=True)
        for path in found.settings:
            shutil.copyfile(path, target / part / path.name)
        if part != changed:
            _copy_weights(found, target / part)
    rounding = _fuse(files, weights, target / changed)
    # The last file: a folder without it is no model, so none that is half written is taken for one.
    (target / INDEX_FILE).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    return rounding


def _fuse(files: PartFiles, weights: LoraWeights, target: Path) -> Rounding:
    """Write the denoiser's files one after another, so that one is in memory at a time."""
    rounding = Rounding()
    held: dict[str, Tensor] = {}
    current: Path | None = None

    def flush() -> None:
        if current is not None:
            save_tensors(held, target / _plain_name(current.name, files.variant), {"format": "pt"})
            held.clear()

    for path, name, tensor in tensors_of(files):
        if path != current:
            flush()
            current = path
        held[name] = fused_tensor(name, tensor, weights, rounding)
    flush()
    _copy_lists(files, target)
    return rounding


def _copy_weights(files: PartFiles, target: Path) -> None:
    for path in files.weights:
        if path.suffix == ".safetensors":
            shutil.copyfile(path, target / _plain_name(path.name, files.variant))
    _copy_lists(files, target)


def _copy_lists(files: PartFiles, target: Path) -> None:
    """Copy lists of shards, with the names that the shards have here."""
    for path in files.weights:
        if path.suffix == ".json":
            found = read_json(path)
            found["weight_map"] = {key: _plain_name(name, files.variant) for key, name in found["weight_map"].items()}
            (target / _plain_name(path.name, files.variant)).write_text(json.dumps(found, indent=2), encoding="utf-8")


def _plain_name(name: str, variant: str) -> str:
    """Return a file's name without its variant, so that the folder loads without one being named."""
    return name.replace(f".{variant}", "", 1) if variant else name
