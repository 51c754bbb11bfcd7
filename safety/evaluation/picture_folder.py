"""A folder of pictures as FID's reference, such as COCO's: its identity by content, and its features' moments."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from safety.errors import ConfigError, ImageError
from safety.evaluation.moments import Moments, moments_of
from safety.families.identity import file_hash
from safety.features.extractor import FeatureExtractor
from safety.images import decode_image

FIELD = "evaluate.fid_reference"
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp"})
BATCH = 16
FEWEST = 2
DIGITS = 12


class PictureFolder(NamedTuple):
    """A folder's pictures: two folders of equal pictures under equal names are the same reference."""

    name: str
    pictures: int
    sha256: str
    """Of the pictures' names and contents."""

    @property
    def title(self) -> str:
        """Return the reference's description in reports."""
        return f"{self.pictures} pictures of the folder {self.name} ({self.sha256[:DIGITS]})"


def picture_files(folder: Path) -> list[Path]:
    """Return a folder's pictures, those of its subfolders among them, by name.

    Raises:
        ConfigError: There are fewer than two.
    """
    if not folder.is_dir():
        raise ConfigError(f"there is no folder {folder}", field=FIELD, fix="name a folder of pictures")
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if len(found) < FEWEST:
        raise ConfigError(
            f"the folder {folder} has {len(found)} pictures ({', '.join(sorted(SUFFIXES))})",
            field=FIELD,
            fix="name a folder with at least as many pictures as benign prompts are evaluated",
        )
    return found


def identify_folder(folder: Path) -> PictureFolder:
    """Return a folder's identity; raise ConfigError as ``picture_files`` does."""
    files, digest = picture_files(folder), hashlib.sha256()
    for path in files:
        digest.update(f"{file_hash(path)}  {path.relative_to(folder).as_posix()}\n".encode())
    return PictureFolder(folder.name, len(files), digest.hexdigest())


def folder_moments(folder: Path, features: FeatureExtractor) -> Moments:
    """Return the moments of a folder's pictures, each in its own size, which the features may change.

    Raises:
        ConfigError: There are fewer than two, or one cannot be read; it is named.
    """
    identity = identify_folder(folder)
    rows = [features.images(batch).cpu() for batch in _batches(picture_files(folder))]
    return moments_of(torch.cat(rows), features.name, identity.title)


def _batches(files: list[Path]) -> Iterator[Tensor]:
    """Yield the pictures in order, neighbours of one size together, uint8 [B, 3, H, W]."""
    for _, same in groupby(map(_read, files), key=lambda image: image.shape):
        held: list[Tensor] = []
        for image in same:
            held.append(image)
            if len(held) == BATCH:
                yield torch.stack(held)
                held = []
        if held:
            yield torch.stack(held)


def _read(path: Path) -> Tensor:
    try:
        return decode_image(path.read_bytes())
    except (ImageError, OSError) as error:
        reason = error.message if isinstance(error, ImageError) else str(error)
        raise ConfigError(
            f"{path} cannot be read ({reason})", field=FIELD, fix="take the picture out of the folder, or mend it"
        ) from None
