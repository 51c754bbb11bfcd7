"""The project's tensor files: safetensors with one JSON header that names the format and describes the tensors."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError, safe_open
from safetensors.torch import save, save_file
from torch import Tensor

from safety.errors import ArtifactFormatError

Head = Mapping[str, Any]
Tensors = Mapping[str, Tensor]
T = TypeVar("T")


def save_tensors(tensors: Tensors, path: Path, metadata: Mapping[str, str]) -> None:
    """Write a safetensors file; raise OSError where the library hides one (a full disk, a folder that is not open to us)."""
    try:
        save_file(dict(tensors), path, metadata=dict(metadata))
    except SafetensorError as error:
        found = re.search(r"os error (\d+)", str(error))
        if found is None:
            raise
        number = int(found[1])
        raise OSError(number, os.strerror(number), str(path)) from None


def under(name: str, tensors: Tensors) -> dict[str, Tensor]:
    """Return the tensors that are called ``name/<key>``, by key."""
    return {key.removeprefix(f"{name}/"): value for key, value in tensors.items() if key.startswith(f"{name}/")}


@dataclass(frozen=True)
class TensorFormat:
    """One kind of file, with the error text for files of another kind."""

    name: str
    """The header's ``format``; ends with the version."""
    key: str
    """The metadata entry that holds the header."""
    misfit: str
    """Predicate of the error about another file, such as "holds no moments"."""
    field: str
    """The error's field."""
    fix: str

    def write(self, path: Path, tensors: Tensors, head: Head) -> Path:
        """Write tensors of any dtype and device, and a header of plain values; equal ones give equal bytes.

        The folder is created when missing. The write is atomic.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.partial")
        plain, metadata = self._content(tensors, head)
        save_tensors(plain, partial, metadata)
        partial.replace(path)
        return path

    def dump(self, tensors: Tensors, head: Head) -> bytes:
        """Return the bytes of the file that ``write`` would write."""
        return save(*self._content(tensors, head))

    def _content(self, tensors: Tensors, head: Head) -> tuple[dict[str, Tensor], dict[str, str]]:
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        # One entry only: the order in which safetensors writes several changes from process to process.
        return plain, {self.key: json.dumps({**head, "format": self.name}, sort_keys=True)}

    def read(self, path: Path, build: Callable[[Head, Tensors], T]) -> T:
        """Read a file and return ``build(header, tensors)``; the tensors are on the CPU, mapped from the file.

        Raises:
            ArtifactFormatError: The file cannot be read or is of another format; ``build`` missed an entry
                (KeyError) or refused a value (ValueError).
        """
        try:
            with safe_open(path, "pt") as handle:
                head = json.loads((handle.metadata() or {}).get(self.key, "{}"))
                tensors = {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118 (not a mapping)
        except (SafetensorError, OSError, ValueError, RecursionError) as error:
            raise self._refused(path, f"it cannot be read ({error})") from error
        found = head.get("format") if isinstance(head, dict) else head
        if found != self.name:
            raise self._refused(path, f"its format is {found!r}")
        try:
            return build(head, tensors)
        except KeyError as error:
            raise self._refused(path, f"it lacks {error}") from None
        except ValueError as error:
            raise self._refused(path, str(error)) from None

    def _refused(self, path: Path, reason: str) -> ArtifactFormatError:
        return ArtifactFormatError(f"{path} {self.misfit}: {reason}", field=self.field, fix=self.fix)
