"""Checkpoints of a running training: safetensors under a hashed manifest that is written last.

A checkpoint that is damaged or half written is passed over for the one before it.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
TENSORS = "state.safetensors"
HISTORY = "history.jsonl"

Metrics = dict[str, float]
"""One step's figures by name."""


class CheckpointStore(Protocol):
    """Where checkpoints lie: small named objects; a write is atomic."""

    def write(self, name: str, data: bytes) -> None:
        """Keep ``data`` under a name such as ``00000050/state.safetensors``."""

    def read(self, name: str) -> bytes | None:
        """Return what is kept under the name, or None."""

    def names(self) -> Sequence[str]:
        """Return all names."""

    def delete(self, name: str) -> None:
        """Remove what is kept under the name; nothing happens when there is none."""


class Checkpoint(NamedTuple):
    """A training's state after ``step`` optimizer steps; tensors fp32 on the CPU, the same for any number of workers."""

    step: int
    adapter: dict[str, Tensor]
    """The LoRA's parameters by name."""
    moments: dict[str, Tensor]
    """The optimizer's state by ``<moment>/<parameter>``."""
    history: list[Metrics]
    """Each finished step's metrics."""


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    size: int
    sha256: str


class _Manifest(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    step: int
    fingerprint: str
    files: dict[str, _Entry]


class Checkpointer:
    """Saves and restores the checkpoints of one training, and keeps the newest few."""

    def __init__(self, store: CheckpointStore, fingerprint: str, keep: int = 2) -> None:
        """Use ``store``.

        Args:
            store: Where they lie; holds nothing else.
            fingerprint: What the training is (its artifact's id): checkpoints of another one are passed over.
            keep: How many are kept; at least 2, so that there is one to fall back on.
        """
        self.store, self.fingerprint, self.keep = store, fingerprint, max(2, keep)

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint, its manifest last, and delete those that are too old."""
        tensors = {f"adapter/{name}": tensor for name, tensor in checkpoint.adapter.items()}
        tensors |= {f"moments/{name}": tensor for name, tensor in checkpoint.moments.items()}
        files = {
            TENSORS: save({name: tensor.contiguous() for name, tensor in tensors.items()}),
            HISTORY: "".join(json.dumps(metrics) + "\n" for metrics in checkpoint.history).encode(),
        }
        for name, data in files.items():
            self.store.write(_name(checkpoint.step, name), data)
        manifest = _Manifest(
            step=checkpoint.step,
            fingerprint=self.fingerprint,
            files={name: _Entry(size=len(data), sha256=_hash(data)) for name, data in files.items()},
        )
        self.store.write(_name(checkpoint.step, MANIFEST), manifest.model_dump_json().encode())
        for step in self._steps()[self.keep :]:
            self._delete(step)

    def latest(self) -> Checkpoint | None:
        """Return the newest good checkpoint, or None."""
        return next((found for step in self._steps() if (found := self.at(step)) is not None), None)

    def at(self, step: int) -> Checkpoint | None:
        """Return the checkpoint of a step, or None when there is no good one."""
        try:
            return self._load(step)
        except (ValueError, SafetensorError) as error:
            logger.warning("the checkpoint of step %d is passed over: %s", step, error)
            return None

    def clear(self) -> None:
        """Delete everything: the training is finished."""
        for step in self._steps():
            self._delete(step)

    def _steps(self) -> list[int]:
        """Return the steps that anything is kept of, newest first."""
        folders = {name.split("/", 1)[0] for name in self.store.names()}
        return sorted((int(folder) for folder in folders if folder.isdigit()), reverse=True)

    def _delete(self, step: int) -> None:
        # The manifest first: what is left of an interrupted deletion must not look like a checkpoint.
        for name in (MANIFEST, TENSORS, HISTORY):
            self.store.delete(_name(step, name))

    def _load(self, step: int) -> Checkpoint:
        """Read a checkpoint; raise ValueError when it is not whole."""
        data = self.store.read(_name(step, MANIFEST))
        if data is None:
            raise ValueError("it has no manifest")
        try:
            manifest = _Manifest.model_validate_json(data)
        except ValidationError:
            raise ValueError("its manifest cannot be read") from None
        if (manifest.step, manifest.fingerprint) != (step, self.fingerprint):
            raise ValueError("it is of another training")
        files = {name: self._verified(step, name, entry) for name, entry in manifest.files.items()}
        if not {TENSORS, HISTORY} <= files.keys():
            raise ValueError("its manifest lacks a file")
        tensors = load(files[TENSORS])
        history = [json.loads(line) for line in files[HISTORY].decode().splitlines()]
        return Checkpoint(step, _under("adapter/", tensors), _under("moments/", tensors), history)

    def _verified(self, step: int, name: str, entry: _Entry) -> bytes:
        data = self.store.read(_name(step, name))
        if data is None or len(data) != entry.size or _hash(data) != entry.sha256:
            raise ValueError(f"{name} does not match its manifest")
        return data


class FolderStore:
    """Keeps checkpoints in a local folder."""

    def __init__(self, folder: Path) -> None:
        """Use ``folder``, made when it is not there."""
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def write(self, name: str, data: bytes) -> None:
        """Write a file atomically."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.partial")
        partial.write_bytes(data)
        partial.replace(path)

    def read(self, name: str) -> bytes | None:
        """Return a file's content, or None."""
        path = self.folder / name
        return path.read_bytes() if path.is_file() else None

    def names(self) -> list[str]:
        """Return the files' names, sorted."""
        return sorted(p.relative_to(self.folder).as_posix() for p in self.folder.rglob("*") if p.is_file())

    def delete(self, name: str) -> None:
        """Remove a file."""
        (self.folder / name).unlink(missing_ok=True)


def _name(step: int, file: str) -> str:
    return f"{step:08d}/{file}"


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
