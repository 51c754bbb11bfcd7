"""Files of weights that judges and features are given: safetensors and nothing else, each held against a checksum."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from safety.errors import ArtifactFormatError, ConfigError

SUFFIX = ".safetensors"


def checksum(files: Sequence[Path], expected: str | None, field: str = "judge.settings.sha256") -> str:
    """Return the SHA-256 over files, 64 hex digits: of one file its own, of several that of their hashes by name.

    Raises:
        ArtifactFormatError: It is another than ``expected``.
    """
    digests = {}
    for path in sorted(files):
        with path.open("rb") as file:
            digests[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
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


def safetensors_of(weights: str, field: str) -> list[Path]:
    """Return the safetensors files of a model's folder, or of a hub id that is in this machine's cache.

    Raises:
        ConfigError: There is none; ``field`` is the setting that names them.
    """
    folder = Path(weights)
    if not folder.is_dir():
        # Slow to import, and not for a model that lies in a folder.
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(weights, local_files_only=True))
    found = sorted(folder.glob(f"*{SUFFIX}"))
    if not found:
        raise ConfigError(f"the model at {weights!r} has no safetensors", field=field, fix="use weights in safetensors")
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
