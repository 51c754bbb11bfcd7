"""The files of one finished group: its shards of the dataset, the figures of its rows, and a few small samples.

The worker that judged a group writes these, so images and latents go from it to the store and nowhere else. The figures
are all that a dataset's summary, card and manifest are made of.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from safety.base import Config
from safety.dataset.latents import dump_latents, latents_file
from safety.dataset.published import data_file, dump_pairs, dump_rejected, rejected_file
from safety.dataset.record import Record
from safety.dataset.summary import SplitCount, content_digest, count_rows
from safety.images import decode_image, encode_png
from safety.prompts.rows import PromptPair

SAMPLE_PAIRS = 5
SAMPLE_PIXELS = 128


class StoredFile(Config):
    """One stored file of a group: its size in bytes and its SHA-256."""

    size: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class GroupFigures(Config):
    """A finished group in figures."""

    category: str
    digest: str = Field(description="SHA-256 over the rows' ids and contents")
    counts: tuple[SplitCount, ...]
    files: dict[str, StoredFile]

    @property
    def rows(self) -> int:
        """Return the number of its rows."""
        return sum(count.rows for count in self.counts)

    @property
    def kept_for_training(self) -> int:
        """Return the number of kept rows of the training split."""
        return sum(count.kept for count in self.counts if count.split == "train")


class GroupFile(NamedTuple):
    """A file of a dataset, by its name there."""

    name: str
    data: bytes


def group_files(number: int, records: Sequence[Record], model: str) -> Iterator[GroupFile]:
    """Yield a judged group's files: shards by split, latents, rejected rows; equal records give equal bytes.

    Args:
        number: The group's number.
        records: All of its rows, kept and rejected.
        model: The base model's name, for the shards' column.
    """
    kept = [record for record in records if record.kept]
    pairs = [record for record in kept if isinstance(record.row, PromptPair)]
    for split in dict.fromkeys(record.row.split for record in pairs):
        yield GroupFile(data_file(split, number), dump_pairs([r for r in pairs if r.row.split == split], model))
    if kept:
        category = kept[0].group
        yield GroupFile(latents_file(category, number), dump_latents(category, kept))
    rejected = [record for record in records if not record.kept]
    if rejected:
        yield GroupFile(rejected_file(number), dump_rejected(rejected))


def group_figures(records: Sequence[Record], files: Mapping[str, StoredFile]) -> GroupFigures:
    """Return the figures of a judged group whose files are stored."""
    return GroupFigures(
        category=records[0].group,
        digest=content_digest(records),
        counts=count_rows(records),
        files=dict(files),
    )


def group_samples(records: Sequence[Record]) -> bytes | None:
    """Return up to ``SAMPLE_PAIRS`` of a group's kept training pairs as one strip of small images, or None without one."""
    training = [r for r in records if r.kept and r.row.split == "train" and isinstance(r.row, PromptPair)]
    return sample_strip([record.images for record in training])


def sample_strip(pairs: Sequence[Sequence[bytes]]) -> bytes | None:
    """Return a choice of pairs as one PNG of 2n squares, each unsafe image left of its safe one; None of no pair."""
    chosen = pairs[:: max(1, len(pairs) // SAMPLE_PAIRS)][:SAMPLE_PAIRS]
    if not chosen:
        return None
    return encode_png(torch.cat([_small(decode_image(data)) for images in chosen for data in images], dim=2))


def read_samples(strip: bytes) -> list[tuple[Tensor, Tensor]]:
    """Return the pairs of a strip, each image uint8 [3, S, S]; raise ImageError when it is none."""
    image = decode_image(strip)
    tiles = torch.split(image, image.shape[1], dim=2)
    return list(zip(tiles[::2], tiles[1::2], strict=False))


def _small(image: Tensor) -> Tensor:
    """Return an image as a square of at most ``SAMPLE_PIXELS``."""
    side = min(SAMPLE_PIXELS, min(image.shape[1:]))
    if tuple(image.shape[1:]) == (side, side):
        return image
    return F.interpolate(image[None].float(), (side, side), mode="area")[0].round().to(torch.uint8)
