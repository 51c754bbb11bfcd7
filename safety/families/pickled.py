"""Pickled weights, read as tensors and nothing else: the only place where a pickle is opened, and for one command alone.

torch's restricted unpickler builds tensors and plain containers and calls nothing that a file names. It was broken before
(CVE-2025-32434), so the command opens files in a process of its own, under limits, and only when a person asks for it.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from safety.errors import ArtifactFormatError
from safety.families.weight_files import require_downloaded

NESTED = ("state_dict", "model_state_dict", "module")
"""Keys below which trainers keep the weights."""
OTHER = "ask whoever made it for safetensors, or take another file of the model"
FIELD = "--model"


def read_pickled(file: Path) -> dict[str, Tensor]:
    """Return the tensors of a pickled file by name.

    Raises:
        ArtifactFormatError: It holds other objects than tensors and plain containers, or none, or is damaged.
    """
    require_pickled(file)
    try:
        # The ban's one exception: torch's restricted form, for the reason above.
        content = torch.load(file, map_location="cpu", weights_only=True)  # noqa: TID251
    except pickle.UnpicklingError as error:
        raise _refused(file, f"it holds more than tensors ({_reason(error)})") from None
    except (RuntimeError, OSError, EOFError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise _refused(file, f"it is damaged, or no file of torch ({_reason(error)})") from None
    return _tensors(content, file)


def require_pickled(file: Path) -> None:
    """Raise ArtifactFormatError for what is no file of torch by its first bytes, such as a git-lfs pointer."""
    with file.open("rb") as stream:
        start = stream.read(2)
    if start[:1] != b"\x80" and start != b"PK":
        require_downloaded(file)
        raise _refused(file, "it is no file of torch")


def write_tensors(tensors: Mapping[str, Tensor], target: Path) -> None:
    """Write tensors to a safetensors file; those that share memory are written each for itself."""
    seen: set[int] = set()
    own = {}
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage()
        whole = tensor.is_contiguous() and storage.nbytes() == tensor.nbytes and storage.data_ptr() not in seen
        seen.add(storage.data_ptr())
        own[name] = tensor if whole else tensor.clone(memory_format=torch.contiguous_format)
    save_file(own, target, metadata={"format": "pt"})


def _tensors(content: Any, file: Path) -> dict[str, Tensor]:
    """Return the tensors of what was read, without a trainer's figures beside them."""
    for key in NESTED:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping):
        raise _refused(file, f"it holds a {type(content).__name__}, and no weights by name")
    found = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if not found:
        raise _refused(file, "it holds no tensor by name")
    odd = next((name for name, value in found.items() if value.is_sparse or value.is_quantized or value.is_meta), None)
    if odd is not None:
        raise _refused(file, f"its tensor {odd} is sparse, quantised or empty, and safetensors cannot hold it")
    return found


def _reason(error: Exception) -> str:
    """Return what torch says is wrong, without its advice to read the file unrestricted."""
    if isinstance(error.__cause__ or error.__context__, zipfile.BadZipFile):
        return "a damaged archive"
    text = str(error)
    for line in text.splitlines():
        if "Unsupported global" in line or "Unsupported class" in line or "GLOBAL" in line:
            return line.partition("WeightsUnpickler error:")[2].strip()[:200] or line.strip()[:200]
    return " ".join(text.split())[:160]


def _refused(file: Path, why: str) -> ArtifactFormatError:
    return ArtifactFormatError(f"{file}: {why}", field=FIELD, fix=OTHER)
