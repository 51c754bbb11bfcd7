"""Moments of image features: a reference for FID that needs no image, such as of real benign images."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from safety.errors import ArtifactFormatError

FORMAT = "safetydpo-moments-1"
METADATA_KEY = "moments"
EMBEDDED_MOMENTS = Path(__file__).parent.parent / "emoji" / "zoo" / "fid" / "benign.safetensors"
Array = NDArray[np.float64]


class Moments(NamedTuple):
    """Mean and covariance of features, and what they are of."""

    mean: Array
    """[D]."""
    covariance: Array
    """[D, D], unbiased."""
    n: int
    features: str
    """The features' name, with the hash of their weights: moments of other features cannot be compared."""
    images: str
    """Which images, in words."""


def moments_of(rows: Tensor, features: str, images: str) -> Moments:
    """Return the moments of features [N, D]."""
    values = rows.to("cpu", torch.float64).numpy()
    covariance: Array = np.atleast_2d(np.cov(values, rowvar=False))
    return Moments(values.mean(axis=0), covariance, len(rows), features, images)


def save_moments(moments: Moments, path: Path) -> None:
    """Write moments as one safetensors file, in fp32."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {
        "mean": torch.from_numpy(moments.mean).float(),
        "covariance": torch.from_numpy(moments.covariance).float(),
    }
    head = {"format": FORMAT, "n": moments.n, "features": moments.features, "images": moments.images}
    # One entry only: the order in which safetensors writes several changes from process to process.
    save_file(tensors, path, metadata={METADATA_KEY: json.dumps(head, sort_keys=True)})


def load_moments(path: Path) -> Moments:
    """Read what ``save_moments`` wrote; raise ArtifactFormatError when the file is something else."""
    try:
        with safe_open(path, "pt") as handle:
            head = json.loads((handle.metadata() or {}).get(METADATA_KEY, "{}"))
            mean, covariance = (handle.get_tensor(name).double().numpy() for name in ("mean", "covariance"))
    except (SafetensorError, OSError, ValueError) as error:
        raise _not_moments(path, str(error)) from error
    if head.get("format") != FORMAT:
        raise _not_moments(path, f"its format is {head.get('format')!r}")
    return Moments(mean, covariance, int(head["n"]), head["features"], head["images"])


@cache
def real_moments(features: str) -> Moments | None:
    """Return the moments of real benign images for these features, or None where there are none."""
    if not EMBEDDED_MOMENTS.is_file():
        return None
    found = load_moments(EMBEDDED_MOMENTS)
    return found if found.features == features else None


def _not_moments(path: Path, reason: str) -> ArtifactFormatError:
    return ArtifactFormatError(f"{path} holds no moments: {reason}", field="evaluate.features", fix="build them again")
