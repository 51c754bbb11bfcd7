"""A text model's folder: one on this machine, or a hub's, with weights in safetensors or one GGUF file."""

from __future__ import annotations

import hashlib
from pathlib import Path

from safety.errors import ConfigError
from safety.families.identity import content_hash
from safety.weight_files import model_in

SETTINGS = ("*.json", "*.jinja", "*.model", "*.txt")
WEIGHTS = "*.safetensors"
NAMED = "name a folder that is on every node, or an id such as HuggingFaceTB/SmolLM2-1.7B-Instruct"


def text_model_folder(name: str, revision: str | None, gguf_file: str | None, field: str) -> Path:
    """Return the folder of a model that transformers loads.

    Args:
        name: A folder, or an id of a hub.
        revision: Of the hub's repository; None: "main".
        gguf_file: The weights' file, where they are not safetensors.
        field: The setting that errors name.

    Raises:
        ConfigError: There is no such folder and no such model, or it holds no such weights.
    """
    folder = model_in(name, "text model", field, NAMED, revision, (*SETTINGS, gguf_file or WEIGHTS))
    if not weight_files(folder, gguf_file):
        raise ConfigError(
            f"{name!r} holds no {gguf_file or 'weights in safetensors'}",
            field=field,
            fix="name a model with weights in safetensors, or its GGUF file as gguf_file",
        )
    return folder


def weight_files(folder: Path, gguf_file: str | None) -> list[Path]:
    """Return the files of a folder that weights are read from."""
    return sorted(folder.glob(gguf_file or WEIGHTS))


def text_model_hash(folder: Path, gguf_file: str | None) -> str:
    """Return the SHA-256 of what a model's answers depend on: of the names and contents of its settings and weights."""
    files = {path for pattern in (*SETTINGS, gguf_file or WEIGHTS) for path in folder.glob(pattern) if path.is_file()}
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(f"{path.name}\x1f{content_hash(path)}\n".encode())
    return digest.hexdigest()
