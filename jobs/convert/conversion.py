"""The conversion: a plan, a process under limits that reads the pickles, and a folder that appears as a whole."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from jobs.convert.plan import Plan, plan, renamed_list
from safety.errors import ArtifactFormatError, ConfigError
from safety.families.weight_files import require_whole

GIB = 2**30
SPARE_GIB = 2.0
FACTOR = 3
"""Memory by the largest file's size: the file, its tensors, and a copy of those that share memory."""
SLOWEST = 5 * 2**20
"""Bytes a second, below which reading counts as stuck."""
START_S = 120


def convert(model: Path, output: Path, memory_gib: float | None = None) -> Path:
    """Write a pickled model as safetensors, and return its path: the folder, or the file for a single one.

    Args:
        model: A diffusers folder, a network's folder, or a pickled file.
        output: A folder that is not there, or is empty.
        memory_gib: The most memory that the process which opens the pickles may take.

    Raises:
        ConfigError: There is nothing to convert, or the output is not empty or cannot be written.
        ArtifactFormatError: A file holds other objects than tensors, is damaged, or needs more than its limits.
    """
    todo = plan(model)
    if output.is_file() or (output.is_dir() and any(output.iterdir())):
        raise ConfigError(f"{output} is not empty", field="--output", fix="name a folder that is not there")
    try:
        _write(output.absolute(), todo, memory_gib)
    except OSError as error:
        raise ConfigError(
            f"{output} cannot be written ({error})", field="--output", fix="name another folder"
        ) from error
    return output / next(iter(todo.convert.values())) if model.is_file() else output


def _write(output: Path, todo: Plan, memory_gib: float | None) -> None:
    """Write the folder as a whole, or leave nothing."""
    output.parent.mkdir(parents=True, exist_ok=True)
    # Its folder is this user's alone, and the model in it as open as any that the user makes.
    own = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent))
    try:
        fresh = own / output.name
        fresh.mkdir()
        _fill(fresh, todo, memory_gib)
        if output.is_dir():
            output.rmdir()
        fresh.rename(output)
    finally:
        shutil.rmtree(own, ignore_errors=True)


def _fill(folder: Path, todo: Plan, memory_gib: float | None) -> None:
    for name in {**todo.convert, **todo.copy, **todo.lists}.values():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
    for path, name in todo.copy.items():
        shutil.copyfile(path, folder / name)
    for path, name in todo.lists.items():
        (folder / name).write_text(json.dumps(renamed_list(path), indent=2), encoding="utf-8")
    _read_apart({path: folder / name for path, name in todo.convert.items()}, memory_gib)
    for name in todo.convert.values():
        require_whole(folder / name)


def _read_apart(files: dict[Path, Path], memory_gib: float | None) -> None:
    """Have a process of its own, under limits, read the pickles and write safetensors."""
    sizes = [path.stat().st_size for path in files]
    memory = (memory_gib or SPARE_GIB + FACTOR * max(sizes) / GIB) * GIB
    seconds = START_S + sum(sizes) / SLOWEST
    task = {
        "files": [[str(path), str(target)] for path, target in files.items()],
        "memory": int(memory),
        "seconds": int(seconds),
        "largest": 2 * max(sizes) + 2**26,
    }
    command = [sys.executable, "-m", "jobs.convert.reader"]
    try:
        ended = subprocess.run(command, input=json.dumps(task), capture_output=True, text=True, timeout=4 * seconds)
    except subprocess.TimeoutExpired:
        raise _stopped(f"reading took longer than {4 * seconds:.0f} s") from None
    try:
        answer = json.loads(ended.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        last = " ".join((ended.stderr.splitlines() or [""])[-1].split())[:200]
        raise _stopped(
            f"the process that reads it, which may take {memory / GIB:.1f} GiB, ended with {ended.returncode} ({last})"
        ) from None
    if "message" in answer:
        raise ArtifactFormatError(answer["message"], field=answer["field"], fix=answer["fix"])


def _stopped(why: str) -> ArtifactFormatError:
    return ArtifactFormatError(
        why, field="--model", fix="allow more by --memory-gib if you trust the file; it may be made to use up a machine"
    )
