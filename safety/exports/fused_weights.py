"""The weights of a base model with an adapter fused in, read file by file: the model itself is never loaded."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from safety.errors import ConfigError
from safety.families.model_index import model_parts
from safety.families.weight_files import LEFT_OUT, PartFiles, require_weights
from safety.lora.files import COMPONENTS, check_shapes
from safety.lora.weights import LoraWeights

WEIGHT = ".weight"
NOT_FUSED = (*COMPONENTS, "tokenizer", "tokenizer_2", "tokenizer_3", "scheduler", *LEFT_OUT)


@dataclass
class Rounding:
    """What is lost where sums are stored in the base's own type."""

    dtypes: set[str] = field(default_factory=set)
    """Of the layers that are changed, such as "float16"."""
    lost: float = 0.0
    """Squared Frobenius norm of stored minus exact weights, over all changed layers."""
    change: float = 0.0
    """Squared Frobenius norm of the adapter's dW."""

    @property
    def error(self) -> float:
        """Return the loss relative to the adapter's own dW: 0.01 says that a hundredth of it was rounded away."""
        return math.sqrt(self.lost / self.change) if self.change > 0 else 0.0


def denoiser_part(base: Path) -> str:
    """Return the name of the part that adapters change; raise ConfigError for a folder with neither of them."""
    parts = model_parts(base)
    found = next((name for name in COMPONENTS if name in parts), None)
    if found is None:
        raise ConfigError(
            f"{base} has neither of the parts {' and '.join(COMPONENTS)}",
            field="model.path",
            fix="name a folder of a text-to-image model in diffusers' format",
        )
    return found


def tensors_of(files: PartFiles) -> Iterator[tuple[Path, str, Tensor]]:
    """Yield each tensor of a part with its file and name, one at a time."""
    for path in files.weights:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as handle:
                for name in handle.keys():  # noqa: SIM118 (not a mapping)
                    yield path, name, handle.get_tensor(name)


def denoiser_files(base: Path, weights: LoraWeights) -> PartFiles:
    """Return the files of the denoiser after a look at each of them.

    Raises:
        ConfigError: The folder holds no such model.
        ArtifactFormatError: A file is damaged, or the adapter is for another base; the first misfit is named.
    """
    files = require_weights(base / denoiser_part(base))
    check_shapes(weights, {name.removesuffix(WEIGHT): shape for name, shape in _shapes(files).items()})
    return files


def _shapes(files: PartFiles) -> Mapping[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    for path in files.weights:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as handle:
                names = [name for name in handle.keys() if name.endswith(WEIGHT)]  # noqa: SIM118 (not a mapping)
                found |= {name: tuple(handle.get_slice(name).get_shape()) for name in names}
    return found


def fused_tensor(name: str, stored: Tensor, weights: LoraWeights, rounding: Rounding) -> Tensor:
    """Return a denoiser's tensor with the adapter's dW added in fp32, in its own type; unchanged where there is no dW.

    Args:
        name: The tensor's name in the denoiser.
        stored: The base's tensor.
        weights: The adapter.
        rounding: What the sum loses is added to it.
    """
    layer = weights.get(name.removesuffix(WEIGHT)) if name.endswith(WEIGHT) else None
    if layer is None:
        return stored
    exact = stored.float().addmm_(layer.up, layer.down)
    result = exact.to(stored.dtype)
    rounding.dtypes.add(str(stored.dtype).removeprefix("torch."))
    rounding.lost += float((result.float() - exact).double().square().sum())
    rounding.change += layer.squared_norm()
    return result
