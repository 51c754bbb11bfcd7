"""A measurement in a process of its own, and the peak of its memory."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

STATUS = Path("/proc/self/status")


def in_own_process(work: Callable[..., Any], *arguments: Any) -> Any:
    """Return what ``work``, a module's function, returns in a new process.

    Raises:
        RuntimeError: The process ended without a result; its own message is on stderr.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(there, work, *arguments))
    process.start()
    there.close()
    try:
        return here.recv()
    except EOFError:
        process.join()
        raise RuntimeError(f"{work.__module__}.{work.__name__} ended with exit code {process.exitcode}") from None
    finally:
        process.join()


def peak_bytes() -> int:
    """Return the most bytes that this process has had in main memory.

    Not the ``ru_maxrss`` of getrusage, which starts at the size of the parent: a small process of a large one never passes it.
    """
    line = next(line for line in STATUS.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def peak_beyond(before: int, device: str) -> int:
    """Return the peak of a GPU's allocator, or of main memory beyond the ``peak_bytes`` that were before."""
    return torch.cuda.max_memory_allocated() if device == "cuda" else peak_bytes() - before


def _send(pipe: Any, work: Callable[..., Any], *arguments: Any) -> None:
    pipe.send(work(*arguments))
