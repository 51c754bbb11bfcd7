"""Files of weights that judges and features are given: safetensors and nothing else, each held against a checksum."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from safety.errors import ArtifactFormatError, ConfigError
from safety.families.hub import HUB_ID, fetch_files
from safety.families.identity import file_hash

SUFFIX = ".safetensors"
MODEL_FILES = ("*.json", "*.txt", f"*{SUFFIX}")
"""What is fetched of a hub's model: its settings, its tokenizer and its weights."""


def checksum(files: Sequence[Path], expected: str | None, field: str = "judge.settings.sha256") -> str:
    """Return the SHA-256 over files, 64 hex digits: of one file its own, of several that of their hashes by name.

    Raises:
        ArtifactFormatError: It is another than ``expected``.
    """
    digests = {path.name: file_hash(path) for path in sorted(files)}
    if len(digests) == 1:
        [found] = digests.values()
    else:
        lines = "".join(f"{digest}  {name}\n" for name, digest in digests.items())
        found = hashlib.sha256(lines.encode()).hexdigest()
    if expected not in (None, found):
        raise ArtifactFormatError(
            f"the weights have the checksum {found} and not {expected}",
            field=field,
            fix="fetch the weights again, or correct the checksum where they are meant to be others",
        )
    return found


def model_in(
    weights: str, what: str, field: str, fix: str, revision: str | None = None, patterns: Sequence[str] = MODEL_FILES
) -> Path:
    """Return the folder of a model of transformers: the one named, or the snapshot of a hub's id.

    The hub is asked once, and the cache of this machine is enough where it does not answer.

    Args:
        weights: A folder, or an id of a hub.
        what: The model's kind, for the error.
        field: The setting that names it.
        fix: What to name there.
        revision: Of the hub's repository; None: "main".
        patterns: Of the names of the files that are fetched.

    Raises:
        ConfigError: It is neither, or the hub gives no such model and the cache has none; it says what to put where.
    """
    folder = Path(weights)
    if folder.is_dir():
        return folder
    if not HUB_ID.fullmatch(weights):
        raise ConfigError(
            f"no {what} at {weights!r}: it is neither a folder here nor an id of a hub", field=field, fix=fix
        )
    return fetch_files(weights, revision, patterns, field)


def safetensors_of(folder: Path, field: str) -> list[Path]:
    """Return the safetensors files of a model's folder; raise ConfigError, which names the setting ``field``, for none."""
    found = sorted(folder.glob(f"*{SUFFIX}"))
    if not found:
        raise ConfigError(f"the model at {folder} has no safetensors", field=field, fix="use weights in safetensors")
    return found


def read_weights(path: Path, field: str, fix: str) -> dict[str, Tensor]:
    """Return the tensors of one safetensors file by name.

    Raises:
        ArtifactFormatError: It is missing, or something else, such as a pickle; ``fix`` says how to make it.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:120]
        raise ArtifactFormatError(f"{path} is no safetensors file ({reason})", field=field, fix=fix) from None
