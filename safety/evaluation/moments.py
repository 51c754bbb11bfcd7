"""Moments of image features: a reference for FID without its images, such as of real benign images."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from safety.embedded import EMBEDDED_MOMENTS_FILE
from safety.errors import EmptyDatasetError
from safety.tensor_format import Head, TensorFormat, Tensors

FORMAT = TensorFormat(
    name="safetydpo-moments-1",
    key="moments",
    misfit="holds no moments",
    field="evaluate.features",
    fix="build them again",
)
Array = NDArray[np.float64]


class Moments(NamedTuple):
    """Mean and covariance of features, with the names of the features and of the images."""

    mean: Array
    """[D]."""
    covariance: Array
    """[D, D], unbiased."""
    n: int
    features: str
    """The features' name, with a hash of their weights; moments of other features are not comparable."""
    images: str
    """Description of the images."""


def moments_of(rows: Tensor, features: str, images: str) -> Moments:
    """Return the moments of features [N, D] of the images that ``images`` describes.

    Raises:
        EmptyDatasetError: There are fewer than two rows, so no covariance.
    """
    if len(rows) < 2:
        raise EmptyDatasetError(
            f"{len(rows)} rows of {images}", field="fid", fix="render at least two benign images (evaluate.counts)"
        )
    values = rows.to("cpu", torch.float64).numpy()
    covariance: Array = np.atleast_2d(np.cov(values, rowvar=False))
    return Moments(values.mean(axis=0), covariance, len(rows), features, images)


def save_moments(moments: Moments, path: Path) -> None:
    """Write moments as one safetensors file, in fp32."""
    tensors = {
        "mean": torch.from_numpy(moments.mean).float(),
        "covariance": torch.from_numpy(moments.covariance).float(),
    }
    FORMAT.write(path, tensors, {"n": moments.n, "features": moments.features, "images": moments.images})


def dump_moments(moments: Moments) -> bytes:
    """Return moments as the bytes of a file, in fp64: a singular covariance would turn fp32's rounding into distance."""
    tensors = {"mean": torch.from_numpy(moments.mean), "covariance": torch.from_numpy(moments.covariance)}
    return FORMAT.dump(tensors, {"n": moments.n, "features": moments.features, "images": moments.images})


def parse_moments(data: bytes) -> Moments:
    """Read what ``dump_moments`` returned; raise ArtifactFormatError when the bytes are something else."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "moments.safetensors"
        path.write_bytes(data)
        return load_moments(path)


def load_moments(path: Path) -> Moments:
    """Read what ``save_moments`` wrote; raise ArtifactFormatError when the file is something else."""
    return FORMAT.read(path, _build)


def _build(head: Head, tensors: Tensors) -> Moments:
    mean, covariance = (tensors[name].double().numpy() for name in ("mean", "covariance"))
    return Moments(mean, covariance, int(head["n"]), head["features"], head["images"])


@cache
def real_moments(features: str) -> Moments | None:
    """Return the moments of real benign images for these features, or None where there are none."""
    if not EMBEDDED_MOMENTS_FILE.is_file():
        return None
    found = load_moments(EMBEDDED_MOMENTS_FILE)
    return found if found.features == features else None
