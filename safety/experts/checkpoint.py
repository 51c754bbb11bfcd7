"""Checkpoints of a running training, each one safetensors object.

A store finds what is corrupt in it, so that training goes on from the newest checkpoint that is whole.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from pydantic import TypeAdapter
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from safety.tensor_format import under

logger = logging.getLogger(__name__)

NAME = re.compile(r"checkpoints/([0-9]+)\.safetensors")

Metrics = dict[str, float]
"""One step's figures by name."""
HISTORY = TypeAdapter(list[Metrics])


class CheckpointStore(Protocol):
    """Small named objects, written atomically and verified when they are read."""

    def write(self, name: str, data: bytes) -> None:
        """Write an object under a name such as ``checkpoints/00000050.safetensors``."""

    def read(self, name: str) -> bytes | None:
        """Return what was written under the name, or None when it is missing or corrupt."""

    def names(self) -> Sequence[str]:
        """Return all names."""

    def delete(self, name: str) -> None:
        """Delete an object; nothing happens when there is none."""


class Checkpoint(NamedTuple):
    """A training's state after ``step`` optimizer steps; tensors fp32 on the CPU, the same for any number of workers."""

    step: int
    adapter: dict[str, Tensor]
    """The LoRA's parameters by name."""
    moments: dict[str, Tensor]
    """The optimizer's state by ``<moment>/<parameter>``."""
    history: list[Metrics]
    """Each finished step's metrics."""


class Checkpointer:
    """Saves and restores the checkpoints of one training, and keeps the newest few."""

    def __init__(
        self, store: CheckpointStore, fingerprint: str, keep: int = 2, shapes: Mapping[str, Sequence[int]] | None = None
    ) -> None:
        """Use ``store``.

        Args:
            store: Where they lie; names other than theirs are left alone.
            fingerprint: The training's name (its artifact's id): checkpoints of another one are skipped.
            keep: Number of checkpoints kept; at least 2, so that there is one to fall back on.
            shapes: The trained parameters' shapes by name; checkpoints of others are skipped. None: any are taken.
        """
        self.store, self.fingerprint, self.keep = store, fingerprint, max(2, keep)
        self.shapes = None if shapes is None else {name: tuple(shape) for name, shape in shapes.items()}

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint, and delete those that are too old."""
        tensors = {f"adapter/{name}": tensor for name, tensor in checkpoint.adapter.items()}
        tensors |= {f"moments/{name}": tensor for name, tensor in checkpoint.moments.items()}
        head = {"fingerprint": self.fingerprint, "history": json.dumps(checkpoint.history)}
        data = save({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata=head)
        self.store.write(_name(checkpoint.step), data)
        for step in self._steps()[self.keep :]:
            self.store.delete(_name(step))

    def latest(self) -> Checkpoint | None:
        """Return the newest whole checkpoint, or None."""
        return next((found for step in self._steps() if (found := self.at(step)) is not None), None)

    def at(self, step: int) -> Checkpoint | None:
        """Return the checkpoint of a step, or None when there is no whole one."""
        data = self.store.read(_name(step))
        if data is None:
            return None
        try:
            head = _read_head(data)
            if head.get("fingerprint") != self.fingerprint:
                logger.warning("the checkpoint of step %d is of another training and is skipped", step)
                return None
            tensors, history = load(data), HISTORY.validate_json(head["history"])
        except (SafetensorError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            logger.warning("the checkpoint of step %d cannot be read and is skipped: %s", step, error)
            return None
        found = Checkpoint(step, under("adapter", tensors), under("moments", tensors), history)
        if not self._fits(found):
            logger.warning("the checkpoint of step %d is of other parameters and is skipped", step)
            return None
        return found

    def _fits(self, found: Checkpoint) -> bool:
        """Return whether a checkpoint holds the trained parameters and nothing else."""
        if self.shapes is None:
            return True
        moments = {name.partition("/")[2]: tuple(tensor.shape) for name, tensor in found.moments.items()}
        adapter = {name: tuple(tensor.shape) for name, tensor in found.adapter.items()}
        return adapter == self.shapes and moments == self.shapes

    def clear(self) -> None:
        """Delete all checkpoints: the training is finished."""
        for step in self._steps():
            self.store.delete(_name(step))

    def _steps(self) -> list[int]:
        """Return the steps that there is a checkpoint of, newest first."""
        steps = []
        for name in self.store.names():
            known = NAME.fullmatch(name)
            if known is None or _name(int(known[1])) != name:
                logger.warning("%s is not a checkpoint and is ignored", name)
            else:
                steps.append(int(known[1]))
        return sorted(steps, reverse=True)


def _name(step: int) -> str:
    return f"checkpoints/{step:08d}.safetensors"


def _read_head(data: bytes) -> dict[str, Any]:
    """Return the metadata of a safetensors object: 8 bytes of length, then JSON."""
    length = int.from_bytes(data[:8], "little")
    head: dict[str, Any] = json.loads(data[8 : 8 + length]).get("__metadata__", {})
    return head
